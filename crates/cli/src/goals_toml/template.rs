//! Strings with references in them: `${goal}`, `${goal.output}`, `${source:NAME}`,
//! `${output:NAME}`, and `$${` for a plain `${`.

/// A part of a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// Stands for itself.
    Text(&'a str),
    /// The path of an output of another goal; its first output if none is named.
    Input {
        goal: &'a str,
        output: Option<&'a str>,
    },
    /// The path of a source.
    Source(&'a str),
    /// The path of an output of the goal itself.
    Output(&'a str),
}

/// Splits a string at its references.
pub(super) fn parse(text: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        if let Some(literal) = before.strip_suffix('$') {
            push_text(&mut parts, literal);
            push_text(&mut parts, "${");
            rest = &reference[2..];
            continue;
        }
        push_text(&mut parts, before);
        let Some(end) = reference.find('}') else {
            return Err("a '${' is not closed; write '$${' for a plain one".to_owned());
        };
        parts.push(parse_reference(&reference[2..end])?);
        rest = &reference[end + 1..];
    }
    push_text(&mut parts, rest);
    Ok(parts)
}

fn push_text<'a>(parts: &mut Vec<Part<'a>>, text: &'a str) {
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
}

fn parse_reference(reference: &str) -> Result<Part<'_>, String> {
    let part = if let Some(name) = reference.strip_prefix("source:") {
        Part::Source(name)
    } else if let Some(name) = reference.strip_prefix("output:") {
        Part::Output(name)
    } else {
        parse_input(reference)
    };
    let named = match part {
        Part::Source(name) | Part::Output(name) => !name.is_empty(),
        Part::Input { goal, output } => !goal.is_empty() && output != Some(""),
        Part::Text(_) => true,
    };
    if named {
        Ok(part)
    } else {
        Err(format!(
            "'${{{reference}}}' names nothing; write '$${{' for a plain '${{'"
        ))
    }
}

/// Reads `goal` or `goal.output`.
pub(super) fn parse_input(text: &str) -> Part<'_> {
    // Neither goals nor outputs have dots in their names here.
    match text.rsplit_once('.') {
        Some((goal, output)) => Part::Input {
            goal,
            output: Some(output),
        },
        None => Part::Input {
            goal: text,
            output: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_text() {
        assert_eq!(
            parse("-I${lib.dev}/include ${source:main} ${output:out} ${lib}"),
            Ok(vec![
                Part::Text("-I"),
                Part::Input {
                    goal: "lib",
                    output: Some("dev")
                },
                Part::Text("/include "),
                Part::Source("main"),
                Part::Text(" "),
                Part::Output("out"),
                Part::Text(" "),
                Part::Input {
                    goal: "lib",
                    output: None
                },
            ])
        );
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn a_doubled_dollar_is_a_plain_one_before_a_brace() {
        assert_eq!(
            parse("a $${b} $c $$ $${"),
            Ok(vec![
                Part::Text("a "),
                Part::Text("${"),
                Part::Text("b} $c $$ "),
                Part::Text("${"),
            ])
        );
    }

    #[test]
    fn an_unclosed_or_empty_reference_is_refused() {
        for text in [
            "${",
            "a ${b",
            "${}",
            "${source:}",
            "${output:}",
            "${a.}",
            "${.a}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
