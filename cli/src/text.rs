//! Text from the cluster, made fit for a terminal.
//!
//! Statuses are written by others, and parts of them come from hypervisors and guests. A name or a message may
//! hold escape sequences or marks that turn the reading direction; printed as they are, they could rewrite what
//! the reader sees. Nothing from the cluster reaches the terminal but through this module.

/// Longest name in a table or a sentence, in characters.
pub const NAME: usize = 63;
/// Longest word of a status (a reason, a version), in characters.
pub const WORD: usize = 40;
/// Longest message, in characters.
pub const MESSAGE: usize = 1024;

/// `text` on one line, without anything that a terminal obeys, cut to `limit` characters.
pub fn clean(text: &str, limit: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    for c in text.chars() {
        let shown = if matches!(c, '\n' | '\t' | '\r') {
            ' '
        } else if is_unsafe(c) {
            '\u{fffd}'
        } else {
            c
        };
        if count + 1 == limit && text.chars().nth(limit).is_some() {
            out.push('…');
            break;
        }
        out.push(shown);
        count += 1;
        if count == limit {
            break;
        }
    }
    out
}

/// JSON in which everything that a terminal would obey is escaped. Such characters can stand only inside a JSON
/// string, where `\uXXXX` means the same.
pub fn clean_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) {
            let mut units = [0u16; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, and the invisible ones that reorder or hide what stands beside them.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{00ad}' | '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert_eq!(clean("web1", NAME), "web1");
        assert_eq!(clean("Größe 42 % · 日本", NAME), "Größe 42 % · 日本");
        assert_eq!(clean("", NAME), "");
    }

    #[test]
    fn nothing_that_a_terminal_obeys_gets_through() {
        assert_eq!(clean("a\u{1b}[2Jb", NAME), "a\u{fffd}[2Jb");
        assert_eq!(
            clean("a\u{9b}31mb\u{7f}\u{7}", NAME),
            "a\u{fffd}31mb\u{fffd}\u{fffd}"
        );
        assert_eq!(clean("one\r\ntwo\tthree", NAME), "one  two three");
        assert_eq!(
            clean("abc\u{202e}def\u{200b}\u{2066}", NAME),
            "abc\u{fffd}def\u{fffd}\u{fffd}"
        );
    }

    #[test]
    fn long_text_is_cut_and_shows_it() {
        assert_eq!(clean("abcdef", 6), "abcdef");
        assert_eq!(clean("abcdefg", 6), "abcde…");
        assert_eq!(clean(&"x".repeat(5000), MESSAGE).chars().count(), MESSAGE);
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({"a": "x\u{9b}y\u{1b}z\u{202e}\u{e0001}\nok"});
        let text = clean_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!text.chars().any(|c| c != '\n' && is_unsafe(c)), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
