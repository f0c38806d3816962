//! What is shown of the scheduler's events: a live view on a terminal, plain lines in a pipe, JSON
//! lines for programs. All three consume the same stream.

pub mod sanitise;

/// Whether text for people may have colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A terminal that shows them.
    Colour,
    /// A pipe, or `NO_COLOR`.
    Plain,
}

impl Style {
    /// Returns a word in the colour of errors.
    #[must_use]
    pub fn error(self, word: &str) -> String {
        self.paint("31;1", word)
    }

    /// Returns a word in the colour of warnings.
    #[must_use]
    pub fn warning(self, word: &str) -> String {
        self.paint("35;1", word)
    }

    /// Returns a word in bold.
    #[must_use]
    pub fn strong(self, word: &str) -> String {
        self.paint("1", word)
    }

    /// Returns a word that stands back.
    #[must_use]
    pub fn faint(self, word: &str) -> String {
        self.paint("2", word)
    }

    fn paint(self, parameters: &str, word: &str) -> String {
        match self {
            Self::Colour => format!("\u{1b}[{parameters}m{word}\u{1b}[0m"),
            Self::Plain => word.to_owned(),
        }
    }
}
