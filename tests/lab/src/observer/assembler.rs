//! From bytes to lines.

use std::collections::BTreeMap;

use godwit_guest::line::{LONGEST, Line};
use serde::Serialize;

/// A line of the guest as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When its last byte was read.
    pub at_ns: u64,
    /// The host at which its last byte came out.
    pub host: String,
    /// Its first bytes came out at another host: the handover cut it in two.
    pub cut: bool,
    /// What it says.
    pub line: Line,
}

/// Bytes that are no line: the guest, the hypervisor or the handover lost or damaged some.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GarbledLine {
    /// How many whole lines were seen before it was known to be broken.
    pub after_lines: usize,
    /// When the last of them was read.
    pub at_ns: u64,
    /// Where they came out.
    pub host: String,
    /// The bytes, made printable and cut to a line's length.
    pub text: String,
}

/// Makes lines of bytes that come from several hosts. Pure: it is told the time.
///
/// A serial port's state moves with the guest, so a line that is being written during the handover begins in one
/// host's log and ends in the next one's, and the two parts together are whole. But should two copies of a guest run,
/// each goes on with that line by itself. So at the first newline after a change of host the assembler tries, in this
/// order: the part left at the host that spoke before and what came since; what came since; the part left at this
/// very host and what came since. The check in each line says which one is right.
#[derive(Debug, Default)]
pub struct Assembler {
    hosts: BTreeMap<String, Partial>,
    speaker: Option<String>,
    lines: Vec<Seen>,
    garbled: Vec<GarbledLine>,
}

/// What was read of a host since its last newline.
#[derive(Debug, Default)]
struct Partial {
    /// The part of a line that the host which spoke before had left, while it may still belong to this one's.
    carried: Vec<u8>,
    /// Since the last newline, but only from when this host became the one that speaks.
    fresh: Vec<u8>,
    /// Left by this host itself when another began to speak.
    left: Vec<u8>,
    /// When the last byte was read.
    at_ns: u64,
    /// Bytes that this host left are part of a whole line at another.
    used_elsewhere: bool,
}

impl Assembler {
    /// Takes bytes that were read from a host's log.
    pub fn bytes(&mut self, at_ns: u64, host: &str, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.speaker.as_deref() != Some(host) {
            self.change_speaker(host);
        }
        for byte in bytes {
            let partial = self.hosts.entry(host.to_owned()).or_default();
            partial.at_ns = at_ns;
            match byte {
                b'\n' => self.end_line(at_ns, host),
                // Bytes without a newline for long are noise; the end of them is enough to call them garbled.
                byte if partial.fresh.len() <= 2 * LONGEST => partial.fresh.push(*byte),
                _ => {}
            }
        }
    }

    /// A host's log began anew: what was left there belongs to a hypervisor process that is gone.
    pub fn log_began_anew(&mut self, host: &str) {
        self.drop_left(host);
        // What this very host had not finished was its old process's: what comes now does not belong to it.
        if self.speaker.as_deref() == Some(host)
            && let Some(partial) = self.hosts.get_mut(host)
        {
            partial.left = std::mem::take(&mut partial.carried);
            partial.left.append(&mut partial.fresh);
            self.drop_left(host);
        }
    }

    /// The lines so far, in the order in which they were completed.
    #[must_use]
    pub fn lines(&self) -> &[Seen] {
        &self.lines
    }

    /// What is garbled so far: lines that are broken, and parts of lines left at a host and completed nowhere.
    #[must_use]
    pub fn garbled(&self) -> Vec<GarbledLine> {
        let mut garbled = self.garbled.clone();
        for (host, partial) in &self.hosts {
            // What the one that speaks has not finished yet is not broken.
            if self.speaker.as_ref() != Some(host) && !partial.left.is_empty() && !partial.used_elsewhere {
                garbled.push(garbled_line(self.lines.len(), partial.at_ns, host, &partial.left));
            }
        }
        garbled
    }

    fn change_speaker(&mut self, host: &str) {
        let mut carried = Vec::new();
        if let Some(before) = self
            .speaker
            .replace(host.to_owned())
            .and_then(|name| self.hosts.get_mut(&name))
        {
            carried.append(&mut before.carried);
            let fresh = std::mem::take(&mut before.fresh);
            carried.extend_from_slice(&fresh);
            before.left.extend_from_slice(&fresh);
        }
        self.hosts.entry(host.to_owned()).or_default().carried = carried;
    }

    fn end_line(&mut self, at_ns: u64, host: &str) {
        let partial = self.hosts.entry(host.to_owned()).or_default();
        let fresh = std::mem::take(&mut partial.fresh);
        let carried = std::mem::take(&mut partial.carried);
        let joined = [carried.as_slice(), &fresh].concat();
        let resumed = [partial.left.as_slice(), &fresh].concat();
        let seen = |line, cut| Seen {
            at_ns,
            host: host.to_owned(),
            cut,
            line,
        };
        if !carried.is_empty()
            && let Ok(line) = Line::parse(&joined)
        {
            self.lines.push(seen(line, true));
            self.carried_was_used(host, &carried);
        } else if let Ok(line) = Line::parse(&fresh) {
            self.lines.push(seen(line, false));
        } else if !partial.left.is_empty()
            && let Ok(line) = Line::parse(&resumed)
        {
            self.lines.push(seen(line, false));
            partial.left.clear();
        } else {
            self.garbled
                .push(garbled_line(self.lines.len(), at_ns, host, &joined));
            self.carried_was_used(host, &carried);
        }
        self.drop_left(host);
    }

    /// What hosts other than `host` left needs no further explanation where it is in `carried`.
    fn carried_was_used(&mut self, host: &str, carried: &[u8]) {
        for (name, partial) in &mut self.hosts {
            let left = partial.left.as_slice();
            if name != host && !left.is_empty() && carried.windows(left.len()).any(|part| part == left) {
                partial.used_elsewhere = true;
            }
        }
    }

    fn drop_left(&mut self, host: &str) {
        let Some(partial) = self.hosts.get_mut(host) else {
            return;
        };
        let left = std::mem::take(&mut partial.left);
        let explained = std::mem::take(&mut partial.used_elsewhere);
        if !left.is_empty() && !explained {
            let lost = garbled_line(self.lines.len(), partial.at_ns, host, &left);
            self.garbled.push(lost);
        }
    }
}

fn garbled_line(after_lines: usize, at_ns: u64, host: &str, bytes: &[u8]) -> GarbledLine {
    let text = bytes
        .iter()
        .take(LONGEST)
        .flat_map(|byte| byte.escape_ascii())
        .map(char::from)
        .collect();
    GarbledLine {
        after_lines,
        at_ns,
        host: host.to_owned(),
        text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Bytes as they arrive, one step after the other: host and text.
    fn assemble(steps: &[(&str, &str)]) -> Assembler {
        let mut assembler = Assembler::default();
        for ((host, text), at_ns) in steps.iter().zip(1..) {
            assembler.bytes(at_ns, host, text.as_bytes());
        }
        assembler
    }

    fn text(tick: u32) -> String {
        Line::Count { tick }.encode()
    }

    fn ticks(assembler: &Assembler) -> Vec<(&str, u64, bool)> {
        assembler
            .lines()
            .iter()
            .map(|seen| (seen.host.as_str(), seen.line.tick().unwrap(), seen.cut))
            .collect()
    }

    #[test]
    fn lines_are_whole_however_the_bytes_are_split() {
        let all = format!("{}{}", text(1), text(2));
        for at in 0..all.len() {
            let (first, second) = all.split_at(at);
            let assembler = assemble(&[("a", first), ("a", second)]);
            assert_eq!(ticks(&assembler), [("a", 1, false), ("a", 2, false)]);
            assert_eq!(assembler.garbled(), []);
        }
    }

    #[test]
    fn a_line_cut_anywhere_by_the_handover_is_joined() {
        let line = text(2);
        for at in 1..line.len() {
            let (first, second) = line.split_at(at);
            let assembler = assemble(&[("a", &text(1)), ("a", first), ("b", second), ("b", &text(3))]);
            assert_eq!(
                ticks(&assembler),
                [("a", 1, false), ("b", 2, true), ("b", 3, false)],
                "cut at {at}"
            );
            assert_eq!(assembler.garbled(), []);
        }
    }

    #[test]
    fn a_line_cut_on_the_way_back_is_joined_too() {
        let (two, three) = (text(2), text(3));
        let (two_first, two_second) = two.split_at(5);
        let (three_first, three_second) = three.split_at(7);
        let assembler = assemble(&[
            ("a", two_first),
            ("b", two_second),
            ("b", three_first),
            ("a", three_second),
            ("a", &text(4)),
        ]);
        assert_eq!(
            ticks(&assembler),
            [("b", 2, true), ("a", 3, true), ("a", 4, false)]
        );
        assert_eq!(assembler.garbled(), []);
    }

    #[test]
    fn a_line_can_cross_a_host_that_wrote_only_its_middle() {
        let line = text(2);
        let assembler = assemble(&[("a", &line[..5]), ("b", &line[5..9]), ("c", &line[9..])]);
        assert_eq!(ticks(&assembler), [("c", 2, true)]);
        assert_eq!(assembler.garbled(), []);
    }

    #[test]
    fn a_part_that_is_completed_nowhere_is_garbled() {
        let assembler = assemble(&[("a", &text(1)), ("a", "B 0000"), ("b", &text(3))]);
        assert_eq!(ticks(&assembler), [("a", 1, false), ("b", 3, false)]);
        let garbled = assembler.garbled();
        assert_eq!(garbled.len(), 1);
        assert_eq!(
            (garbled[0].host.as_str(), garbled[0].text.as_str()),
            ("a", "B 0000")
        );
    }

    #[test]
    fn the_last_line_of_the_one_that_speaks_may_be_unfinished() {
        assert_eq!(assemble(&[("a", &text(1)), ("a", "B 0000")]).garbled(), []);
    }

    #[test]
    fn bytes_lost_in_the_handover_make_one_garbled_line() {
        let line = text(2);
        let assembler = assemble(&[("a", &line[..5]), ("b", &line[7..]), ("b", &text(3))]);
        assert_eq!(ticks(&assembler), [("b", 3, false)]);
        assert_eq!(assembler.garbled().len(), 1);
    }

    #[test]
    fn two_copies_that_both_end_the_same_line_are_both_seen() {
        let line = text(2);
        let (first, second) = line.split_at(6);
        let assembler = assemble(&[
            ("a", first),
            ("b", second),
            ("a", second),
            ("b", &text(3)),
            ("a", &text(3)),
        ]);
        assert_eq!(
            ticks(&assembler),
            [("b", 2, true), ("a", 2, false), ("b", 3, false), ("a", 3, false)]
        );
        assert_eq!(assembler.garbled(), []);
    }

    #[test]
    fn two_copies_whose_bytes_are_mixed_still_give_the_lines_of_each() {
        let (one, two) = (text(11), text(12));
        let assembler = assemble(&[
            ("a", &one[..4]),
            ("b", &one[..9]),
            ("a", &one[4..]),
            ("b", &one[9..]),
            ("a", &two[..3]),
            ("b", &two),
            ("a", &two[3..]),
        ]);
        assert_eq!(
            ticks(&assembler),
            [
                ("a", 11, false),
                ("b", 11, false),
                ("b", 12, false),
                ("a", 12, false)
            ]
        );
    }

    #[test]
    fn what_an_old_process_had_not_finished_is_not_joined_to_a_new_ones_line() {
        let mut assembler = assemble(&[("a", &text(1)), ("a", "B 0000")]);
        assembler.log_began_anew("a");
        assembler.bytes(9, "a", text(1).as_bytes());
        assert_eq!(ticks(&assembler), [("a", 1, false), ("a", 1, false)]);
        assert_eq!(assembler.garbled().len(), 1);
    }

    #[test]
    fn noise_without_end_is_bounded() {
        let assembler = assemble(&[("a", &"x".repeat(100_000)), ("a", "\n")]);
        assert_eq!(assembler.garbled().len(), 1);
        assert!(assembler.garbled()[0].text.len() <= LONGEST);
    }
}
