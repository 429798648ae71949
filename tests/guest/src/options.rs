//! What the guest is told on its kernel's command line.
//!
//! | option | meaning | default |
//! | --- | --- | --- |
//! | `godwit.fill=768M` | bytes of memory filled with the pattern | 16M |
//! | `godwit.working_set=64M` | how many of them, from the first on, are dirtied | 8M |
//! | `godwit.dirty=50M` | bytes dirtied per second | 0 |
//! | `godwit.scrub=64M` | bytes per second checked in the background, round and round | 16M |
//! | `godwit.interval=5` | milliseconds between ticks, 1 to 10000 | 5 |
//! | `godwit.seed=1` | chooses the pattern | 1 |
//!
//! Sizes may end in K, M or G (powers of 1024).

/// The options, all of them given or defaulted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of memory filled with the pattern.
    pub fill: u64,
    /// Bytes of it that are dirtied.
    pub working_set: u64,
    /// Bytes dirtied per second.
    pub dirty: u64,
    /// Bytes checked per second in the background.
    pub scrub: u64,
    /// Milliseconds between ticks.
    pub interval_ms: u64,
    /// Chooses the pattern.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            fill: 16 << 20,
            working_set: 8 << 20,
            dirty: 0,
            scrub: 16 << 20,
            interval_ms: 5,
            seed: 1,
        }
    }
}

/// An option that is not known or whose value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadOption(pub String);

impl Options {
    /// Reads the options out of a kernel command line; what does not begin with `godwit.` is the kernel's.
    ///
    /// # Errors
    /// [`BadOption`] names the first option of ours that is not in the table above or out of its range.
    pub fn parse(command_line: &str) -> Result<Self, BadOption> {
        let mut options = Self::default();
        for word in command_line.split_ascii_whitespace() {
            let Some(option) = word.strip_prefix("godwit.") else {
                continue;
            };
            let bad = || BadOption(word.to_owned());
            let (name, value) = option.split_once('=').ok_or_else(bad)?;
            let value = size(value).ok_or_else(bad)?;
            match name {
                "fill" => options.fill = value,
                "working_set" => options.working_set = value,
                "dirty" => options.dirty = value,
                "scrub" => options.scrub = value,
                "interval" if (1..=10_000).contains(&value) => options.interval_ms = value,
                "seed" => options.seed = value,
                _ => return Err(bad()),
            }
        }
        Ok(options)
    }
}

/// Reads a number that may end in K, M or G.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' => (text.strip_suffix('K')?, 1 << 10),
        b'M' => (text.strip_suffix('M')?, 1 << 20),
        b'G' => (text.strip_suffix('G')?, 1 << 30),
        _ => (text, 1),
    };
    if !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_options_are_left_alone() {
        assert_eq!(
            Options::parse("quiet console=ttyS0 fill=3\n"),
            Ok(Options::default())
        );
    }

    #[test]
    fn each_option_is_read() {
        let told = "godwit.fill=768M godwit.working_set=64M quiet godwit.dirty=50M godwit.scrub=0 godwit.interval=20 godwit.seed=9";
        assert_eq!(
            Options::parse(told),
            Ok(Options {
                fill: 768 << 20,
                working_set: 64 << 20,
                dirty: 50 << 20,
                scrub: 0,
                interval_ms: 20,
                seed: 9
            })
        );
    }

    #[test]
    fn nonsense_is_named() {
        for word in [
            "godwit.fil=1M",
            "godwit.fill",
            "godwit.fill=",
            "godwit.fill=M",
            "godwit.fill=1T",
            "godwit.fill=-1",
            "godwit.interval=0",
            "godwit.fill=99999999999G",
        ] {
            assert_eq!(Options::parse(word), Err(BadOption(word.to_owned())));
        }
    }
}
