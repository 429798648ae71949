//! Lines of QMP: cutting them out of a stream, within a bound, and reading them. Pure.

use serde_json::Value;

/// The longest line that is taken, in bytes. The longest that we ask for (the list of CPU models) has about 100 KiB.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// The longest text that is kept of what QEMU says for people, in bytes.
pub const MAX_TEXT_BYTES: usize = 1024;

/// A line was longer than [`MAX_LINE_BYTES`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of the monitor has more than {MAX_LINE_BYTES} bytes")]
pub struct LineTooLong;

/// Cuts a stream of bytes into lines.
#[derive(Default)]
pub struct Lines {
    bytes: Vec<u8>,
    /// How many of `bytes` are known to hold no line's end.
    searched: usize,
}

impl Lines {
    /// Adds what was read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole line, without its end. `None` if there is none yet; an error if none can come within
    /// the bound, after which the stream is of no use.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let fresh = self.bytes.get(self.searched..).unwrap_or_default();
        let Some(offset) = fresh.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.bytes.len();
            return if self.bytes.len() > MAX_LINE_BYTES {
                Err(LineTooLong)
            } else {
                Ok(None)
            };
        };
        let end = self.searched + offset;
        if end > MAX_LINE_BYTES {
            return Err(LineTooLong);
        }
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        self.searched = 0;
        line.pop();
        Ok(Some(line))
    }
}

/// What QEMU says first on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// QEMU's version.
    pub version: Version,
    /// Whether commands can be sent out of band.
    pub out_of_band: bool,
}

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Micro.
    pub micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// An error as QEMU words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its class, bounded.
    pub class: String,
    /// Its words, bounded.
    pub message: String,
}

/// An event as QEMU sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEvent {
    /// Its name.
    pub name: String,
    /// QEMU's clock, Unix time in microseconds; 0 if QEMU had none.
    pub at_micros: i64,
    /// Its data; null if there is none.
    pub data: Value,
}

/// One line of QMP.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The first line.
    Greeting(Greeting),
    /// The answer to a command.
    Reply {
        /// The command's id; absent if QEMU could not read the command.
        id: Option<u64>,
        /// The answer.
        result: Result<Value, Refusal>,
    },
    /// Something happened.
    Event(RawEvent),
}

/// Reads a line. The error says, within bounds, what was wrong with it.
pub fn parse(line: &[u8]) -> Result<Message, String> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| format!("a line of the monitor is not JSON: {error}"))?;
    let Value::Object(mut object) = value else {
        return Err("a line of the monitor is not a JSON object".into());
    };
    if let Some(greeting) = object.get("QMP") {
        return parse_greeting(greeting)
            .map(Message::Greeting)
            .ok_or_else(|| "the monitor's greeting has no version".into());
    }
    if let Some(name) = object.get("event") {
        let name = name.as_str().ok_or("an event of the monitor has no name")?;
        let at_micros = object.get("timestamp").map_or(0, micros);
        return Ok(Message::Event(RawEvent {
            name: bounded(name),
            at_micros,
            data: object.remove("data").unwrap_or(Value::Null),
        }));
    }
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(value) = object.remove("return") {
        return Ok(Message::Reply {
            id,
            result: Ok(value),
        });
    }
    if let Some(error) = object.get("error") {
        let text = |field| bounded(error.get(field).and_then(Value::as_str).unwrap_or_default());
        return Ok(Message::Reply {
            id,
            result: Err(Refusal {
                class: text("class"),
                message: text("desc"),
            }),
        });
    }
    Err("a line of the monitor is neither greeting, answer nor event".into())
}

fn parse_greeting(greeting: &Value) -> Option<Greeting> {
    let qemu = greeting.get("version")?.get("qemu")?;
    let number = |field| {
        qemu.get(field)
            .and_then(Value::as_u64)
            .and_then(|number| u32::try_from(number).ok())
    };
    let out_of_band = greeting
        .get("capabilities")
        .and_then(Value::as_array)
        .is_some_and(|capabilities| capabilities.iter().any(|capability| capability == "oob"));
    Some(Greeting {
        version: Version {
            major: number("major")?,
            minor: number("minor")?,
            micro: number("micro")?,
        },
        out_of_band,
    })
}

/// QEMU writes -1 for both parts when it could not read its clock.
fn micros(timestamp: &Value) -> i64 {
    let part = |field| {
        timestamp
            .get(field)
            .and_then(Value::as_i64)
            .filter(|part| *part >= 0)
    };
    match (part("seconds"), part("microseconds")) {
        (Some(seconds), Some(micros)) => seconds.saturating_mul(1_000_000).saturating_add(micros),
        (Some(_) | None, None) | (None, Some(_)) => 0,
    }
}

/// Cuts a text for people to [`MAX_TEXT_BYTES`] and takes out what could disturb a terminal or a log.
pub fn bounded(text: &str) -> String {
    let mut kept = String::new();
    for character in text.chars() {
        if kept.len() + character.len_utf8() > MAX_TEXT_BYTES {
            break;
        }
        kept.push(if character.is_control() { ' ' } else { character });
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_a_real_greeting() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        let expected = Greeting {
            version: Version {
                major: 10,
                minor: 0,
                micro: 2,
            },
            out_of_band: true,
        };
        assert_eq!(parse(line), Ok(Message::Greeting(expected)));
    }

    #[test]
    fn reads_answers_and_errors() {
        assert_eq!(
            parse(br#"{"return": {}, "id": 7}"#),
            Ok(Message::Reply {
                id: Some(7),
                result: Ok(serde_json::json!({}))
            })
        );
        assert_eq!(
            parse(
                br#"{"id": 8, "error": {"class": "GenericError", "desc": "Failed to get \"write\" lock"}}"#
            ),
            Ok(Message::Reply {
                id: Some(8),
                result: Err(Refusal {
                    class: "GenericError".into(),
                    message: "Failed to get \"write\" lock".into()
                })
            })
        );
    }

    #[test]
    fn reads_events_that_it_does_not_know() {
        let line = br#"{"timestamp": {"seconds": 1700000000, "microseconds": 25}, "event": "FROM_THE_FUTURE", "data": {"x": [1]}}"#;
        let Ok(Message::Event(event)) = parse(line) else {
            panic!("not an event")
        };
        assert_eq!(
            (event.name.as_str(), event.at_micros),
            ("FROM_THE_FUTURE", 1_700_000_000_000_025)
        );
    }

    #[test]
    fn a_clock_that_failed_is_zero() {
        let line = br#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}"#;
        let Ok(Message::Event(event)) = parse(line) else {
            panic!("not an event")
        };
        assert_eq!((event.at_micros, event.data), (0, Value::Null));
    }

    #[test]
    fn r11_a_line_without_end_is_refused_at_the_bound() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE_BYTES]);
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"x");
        assert_eq!(lines.next_line(), Err(LineTooLong));
        let mut at_once = Lines::default();
        at_once.push(&vec![b'x'; MAX_LINE_BYTES + 1]);
        at_once.push(b"\n");
        assert_eq!(at_once.next_line(), Err(LineTooLong));
    }

    #[test]
    fn r11_deep_nesting_is_an_error_and_no_crash() {
        let mut line = vec![b'['; 100_000];
        line.extend(vec![b']'; 100_000]);
        assert!(parse(&line).is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(line in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = parse(&line);
        }

        #[test]
        fn strange_objects_never_panic(key in "QMP|event|return|error|id|timestamp|data", value in "[-\\[\\]{}0-9a-z\",:]{0,40}") {
            let _ = parse(format!("{{\"{key}\": {value}}}").as_bytes());
        }

        #[test]
        fn lines_are_cut_alike_however_they_arrive(text in proptest::collection::vec("[a-z\r]{0,30}", 0..20), cut in 1_usize..40) {
            let mut whole = text.join("\n").into_bytes();
            whole.push(b'\n');
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in whole.chunks(cut) {
                lines.push(piece);
                while let Some(line) = lines.next_line().unwrap() {
                    found.push(String::from_utf8(line).unwrap());
                }
            }
            let expected = if text.is_empty() { vec![String::new()] } else { text };
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn r11_kept_text_is_bounded(text in "\\PC{0,3000}") {
            prop_assert!(bounded(&text).len() <= MAX_TEXT_BYTES);
        }
    }
}
