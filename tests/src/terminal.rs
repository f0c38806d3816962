//! A terminal that a program draws on and that a test looks at: a real pseudo-terminal, and a
//! screen that understands what is written to it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use vt100::{Callbacks, Parser, Screen};

use crate::measure;

/// How long a program may take to draw what a test waits for.
const PATIENCE: Duration = Duration::from_mins(1);

/// How many rows that scrolled off are remembered.
const SCROLLBACK: usize = 10_000;

/// A terminal of a fixed size.
pub struct Terminal {
    keyboard: File,
    /// The end that a program gets; only until one has it, so that its end can be seen.
    line: Option<OwnedFd>,
    written: Receiver<Vec<u8>>,
    parser: Parser<Disturbances>,
    transcript: Vec<u8>,
    modes: Termios,
}

/// What a program asked of the terminal besides showing text, in words.
#[derive(Debug, Default)]
pub struct Disturbances(Vec<String>);

impl Terminal {
    /// Opens a terminal.
    #[must_use]
    pub fn open(n_rows: u16, n_columns: u16) -> Self {
        let size = Winsize {
            ws_row: n_rows,
            ws_col: n_columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(&size, None).expect("a pseudo-terminal can be opened");
        let modes = tcgetattr(&pair.slave).expect("a terminal has modes");
        let mut shown = File::from(pair.master);
        let keyboard = shown.try_clone().expect("a descriptor can be copied");
        let (sender, written) = channel();
        // Always reading, so that no program ever waits for a test that looks elsewhere.
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            // An error is how the kernel says that nobody has the other end any more.
            while let Ok(n_read @ 1..) = shown.read(&mut buffer) {
                if sender.send(buffer[..n_read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let [rows, columns] = [n_rows, n_columns]
            .map(|length| NonZeroU16::new(length).expect("a terminal shows something"));
        Self {
            keyboard,
            line: Some(pair.slave),
            written,
            parser: Parser::new_with_callbacks(rows, columns, SCROLLBACK, Disturbances::default()),
            transcript: Vec::new(),
            modes,
        }
    }

    /// Returns one end more for a program.
    pub(crate) fn line(&self) -> Stdio {
        let line = self.line.as_ref().expect("a terminal runs one program");
        line.try_clone().expect("a descriptor can be copied").into()
    }

    /// Lets go of the program's end, once it has it.
    pub(crate) fn hand_over(&mut self) {
        self.line = None;
    }

    /// Types at the keyboard; `\x03` is Ctrl-C.
    pub fn type_in(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("somebody may type at any time");
    }

    /// Waits until the screen's rows are as wanted; returns them.
    pub fn await_rows(&mut self, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
        let deadline = measure::now() + PATIENCE;
        loop {
            let rows = self.rows();
            if wanted(&rows) {
                return rows;
            }
            let remaining = deadline.saturating_duration_since(measure::now());
            match self.written.recv_timeout(remaining) {
                Ok(bytes) => self.show(&bytes),
                Err(RecvTimeoutError::Timeout) => panic!("it was never drawn:\n{self}"),
                Err(RecvTimeoutError::Disconnected) => panic!("it ended without:\n{self}"),
            }
        }
    }

    /// Waits until no program has the terminal any more; returns every row that has anything on it,
    /// those that scrolled off first.
    pub fn await_end(&mut self) -> Vec<String> {
        let deadline = measure::now() + PATIENCE;
        loop {
            let remaining = deadline.saturating_duration_since(measure::now());
            match self.written.recv_timeout(remaining) {
                Ok(bytes) => self.show(&bytes),
                Err(RecvTimeoutError::Disconnected) => return self.all_rows(),
                Err(RecvTimeoutError::Timeout) => panic!("somebody still has it:\n{self}"),
            }
        }
    }

    /// Fails unless the terminal is as it was before the program: nothing was asked of it but to
    /// show text, the cursor is there and at the beginning of a row, letters look ordinary, and what
    /// is typed is treated as before.
    #[track_caller]
    pub fn assert_as_before(&self) {
        let Disturbances(disturbances) = self.parser.callbacks();
        assert_eq!(*disturbances, Vec::<String>::new(), "{self}");
        let screen = self.parser.screen();
        assert!(!screen.hide_cursor(), "the cursor is hidden:\n{self}");
        assert_eq!(
            screen.cursor_position().1,
            0,
            "the cursor's column:\n{self}"
        );
        assert!(!screen.alternate_screen(), "the other screen:\n{self}");
        assert_eq!(screen.attributes_formatted(), "\x1b[m", "{self}");
        assert_eq!(screen.input_mode_formatted(), fresh_input_mode(), "{self}");
        let modes = tcgetattr(&self.keyboard).expect("a terminal has modes");
        assert_eq!(modes, self.modes, "the modes of the terminal");
    }

    /// Returns everything that was written to the terminal so far.
    #[must_use]
    pub fn transcript(&self) -> &[u8] {
        &self.transcript
    }

    fn show(&mut self, bytes: &[u8]) {
        self.transcript.extend_from_slice(bytes);
        self.parser.process(bytes);
    }

    /// Returns what each row of the screen shows, without blanks at its end.
    fn rows(&self) -> Vec<String> {
        let screen = self.parser.screen();
        let (_, n_columns) = screen.size();
        screen
            .rows(0, n_columns.get())
            .map(|row| row.trim_end().to_owned())
            .collect()
    }

    fn all_rows(&mut self) -> Vec<String> {
        let mut rows = Vec::new();
        let n_above = self.parser.screen().scrollback_len();
        // The view upon what scrolled off moves by whole rows; its first row is the oldest one.
        for n_back in (1..=n_above).rev() {
            self.parser.screen_mut().set_scrollback(n_back);
            rows.extend(self.rows().into_iter().next());
        }
        self.parser.screen_mut().set_scrollback(0);
        rows.extend(self.rows());
        rows.retain(|row| !row.is_empty());
        rows
    }
}

impl std::fmt::Display for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for row in self.rows() {
            writeln!(f, "  |{row}")?;
        }
        let start = self.transcript.len().saturating_sub(4000);
        write!(f, "at last: {}", self.transcript[start..].escape_ascii())
    }
}

/// Returns how a terminal that nobody has used treats the keyboard.
fn fresh_input_mode() -> String {
    Parser::default().screen().input_mode_formatted()
}

impl Disturbances {
    fn add(&mut self, what: std::fmt::Arguments<'_>) {
        let mut words = String::new();
        write!(words, "{what}").expect("a string takes any text");
        self.0.push(words);
    }
}

impl Callbacks for Disturbances {
    fn audible_bell(&mut self, _: &mut Screen) {
        self.add(format_args!("a bell"));
    }

    fn visual_bell(&mut self, _: &mut Screen) {
        self.add(format_args!("a flash"));
    }

    fn resize(&mut self, _: &mut Screen, size: (u16, u16)) {
        self.add(format_args!("another size: {size:?}"));
    }

    fn set_window_icon_name(&mut self, _: &mut Screen, name: &[u8]) {
        self.add(format_args!("an icon's name: {}", name.escape_ascii()));
    }

    fn set_window_title(&mut self, _: &mut Screen, title: &[u8]) {
        self.add(format_args!("a title: {}", title.escape_ascii()));
    }

    fn copy_to_clipboard(&mut self, _: &mut Screen, _: &[u8], text: &[u8]) {
        self.add(format_args!("copied: {}", text.escape_ascii()));
    }

    fn paste_from_clipboard(&mut self, _: &mut Screen, _: &[u8]) {
        self.add(format_args!("pasted"));
    }

    fn unhandled_char(&mut self, _: &mut Screen, character: char) {
        // What stands for bytes that are no text is text.
        if character != char::REPLACEMENT_CHARACTER {
            self.add(format_args!("a character: {character:?}"));
        }
    }

    fn unhandled_control(&mut self, _: &mut Screen, byte: u8) {
        self.add(format_args!("a control character: {byte}"));
    }

    fn unhandled_escape(&mut self, _: &mut Screen, _: Option<u8>, _: Option<u8>, byte: u8) {
        self.add(format_args!("an escape sequence: {byte}"));
    }

    fn unhandled_csi(
        &mut self,
        _: &mut Screen,
        _: Option<u8>,
        _: Option<u8>,
        parameters: &[&[u16]],
        command: char,
    ) {
        self.add(format_args!("a control sequence: {parameters:?} {command}"));
    }

    fn unhandled_osc(&mut self, _: &mut Screen, parameters: &[&[u8]]) {
        self.add(format_args!("an operating system command: {parameters:?}"));
    }
}
