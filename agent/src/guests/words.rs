//! Allow-lists for every kind of string that reaches the agent from outside and ends in a path, an argument or
//! the hypervisor's configuration. Each says the same as the pattern in the custom resource.

/// Whether `text` has between one and `longest` bytes, the first and the last of which satisfy `edge` and the
/// others `inner`.
fn bounded(text: &str, longest: usize, edge: fn(u8) -> bool, inner: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    bytes.len() <= longest && edge(*first) && edge(*last) && bytes.iter().all(|b| inner(*b))
}

fn lower_or_digit(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn alphanumeric(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

/// A UID as the API server makes them: a UUID in lower case with hyphens.
pub fn is_uid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
}

/// A namespace's or a pool's name.
pub fn is_label(text: &str) -> bool {
    bounded(text, 63, lower_or_digit, |b| lower_or_digit(b) || b == b'-')
}

/// An object's name.
pub fn is_name(text: &str) -> bool {
    bounded(text, 253, lower_or_digit, |b| {
        lower_or_digit(b) || b == b'-' || b == b'.'
    })
}

/// The name of a disk or an interface.
pub fn is_device_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && bounded(text, 20, lower_or_digit, |b| lower_or_digit(b) || b == b'-')
}

/// A machine type with its version.
pub fn is_machine_type(text: &str) -> bool {
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let Some((stem, version)) = text.rsplit_once('-') else {
        return false;
    };
    text.len() <= 64
        && stem
            .split('-')
            .all(|part| !part.is_empty() && part.bytes().all(lower_or_digit))
        && version
            .split_once('.')
            .is_some_and(|(major, minor)| digits(major) && digits(minor))
}

/// A named CPU model that is the same on every host.
pub fn is_cpu_model(text: &str) -> bool {
    bounded(text, 64, alphanumeric, |b| {
        alphanumeric(b) || matches!(b, b'.' | b'_' | b'-')
    }) && !matches!(text, "host" | "max" | "base")
}

/// A kernel's command line: printable ASCII.
pub fn is_command_line(text: &str) -> bool {
    text.len() <= 2048 && text.bytes().all(|b| (b' '..=b'~').contains(&b))
}

/// A file's path below a pool: no component begins with a dot or a hyphen, none is empty.
pub fn is_pool_path(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && text.split('/').all(|part| is_path_component(part, false))
}

/// A block device below `/dev`.
pub fn is_block_device(text: &str) -> bool {
    text.len() <= 255
        && text
            .strip_prefix("/dev/")
            .is_some_and(|rest| rest.split('/').all(|part| is_path_component(part, true)))
}

fn is_path_component(part: &str, colons: bool) -> bool {
    part.bytes().next().is_some_and(|b| alphanumeric(b) || b == b'_')
        && part
            .bytes()
            .all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-') || (colons && b == b':'))
}

/// A network interface's name in the kernel.
pub fn is_bridge(text: &str) -> bool {
    bounded(text, 15, alphanumeric, |b| {
        alphanumeric(b) || matches!(b, b'.' | b'_' | b'-')
    })
}

/// A unicast MAC address in lower case.
pub fn is_mac(text: &str) -> bool {
    text.len() == 17
        && text.bytes().enumerate().all(|(at, b)| match at % 3 {
            2 => b == b':',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
        })
        && text
            .as_bytes()
            .get(1)
            .is_some_and(|b| matches!(b, b'0' | b'2' | b'4' | b'6' | b'8' | b'a' | b'c' | b'e'))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]
mod tests {
    use super::*;

    /// Things that no string may contain, put into the middle of a good one.
    const HOSTILE: [&str; 10] = [",", "\n", "\0", "..", "=", "\"", " ", "é", "/../", "%"];

    fn refuses_hostile(check: fn(&str) -> bool, good: &str, allowed: &[&str]) {
        assert!(check(good), "{good}");
        let (head, tail) = good.split_at(good.len() / 2);
        for part in HOSTILE.iter().filter(|p| !allowed.contains(p)) {
            let bad = format!("{head}{part}{tail}");
            assert!(!check(&bad), "{bad:?}");
            assert!(!check(&format!("{good}{part}")), "{good}{part:?}");
            assert!(!check(&format!("{part}{good}")), "{part:?}{good}");
        }
        assert!(!check(""), "empty");
        assert!(!check(&good.repeat(300)), "too long");
    }

    #[test]
    fn hostile_strings_are_refused() {
        refuses_hostile(is_uid, "6f1ad7a0-3f54-4a43-9c5e-0d8a5b1c2d3e", &[]);
        refuses_hostile(is_label, "default", &[]);
        refuses_hostile(is_device_name, "root", &[]);
        refuses_hostile(is_machine_type, "pc-q35-10.0", &[]);
        refuses_hostile(is_mac, "52:54:00:12:34:56", &[]);
    }

    #[test]
    fn dots_are_part_of_some_words_and_never_a_component() {
        for check in [is_pool_path, is_block_device_below] {
            for bad in [
                "..", "a/..", "../a", "a/../b", ".", "a/./b", "", "/a", "a/", "a//b", "-a", ".a", "a,b",
                "a\0", "a\nb", "a b",
            ] {
                assert!(!check(bad), "{bad:?}");
            }
            assert!(check("images/root.qcow2"));
        }
        assert!(!is_block_device("/dev/"));
        assert!(!is_block_device("/etc/passwd"));
        assert!(is_block_device("/dev/disk/by-path/pci-0000:00:1f.2-ata-1"));
    }

    fn is_block_device_below(text: &str) -> bool {
        is_block_device(&format!("/dev/{text}"))
    }

    #[test]
    fn each_word_takes_what_the_resource_takes() {
        assert!(is_name("web-1.example"));
        assert!(!is_name("-a") && !is_name("A") && !is_name("a_b") && !is_name("a,b") && !is_name("a\n"));
        assert!(is_cpu_model("Skylake-Server-v4") && is_cpu_model("qemu64"));
        assert!(
            !is_cpu_model("max")
                && !is_cpu_model("host")
                && !is_cpu_model("qemu64,+avx")
                && !is_cpu_model("qemu64\0")
        );
        assert!(is_machine_type("pc-i440fx-10.0"));
        assert!(
            !is_machine_type("q35")
                && !is_machine_type("pc-10")
                && !is_machine_type("pc--1.0")
                && !is_machine_type("pc-1.0.0")
        );
        assert!(is_command_line("console=ttyS0 quiet, a=\"b\"") && is_command_line(""));
        assert!(!is_command_line("a\nb") && !is_command_line("a\0b") && !is_command_line("é"));
        assert!(is_bridge("br0") && is_bridge("br.100"));
        assert!(
            !is_bridge("br0,script=/x")
                && !is_bridge("../x")
                && !is_bridge("abcdefghijklmnop")
                && !is_bridge("a/b")
        );
        assert!(!is_mac("53:54:00:12:34:56") && !is_mac("52:54:00:12:34:5G") && !is_mac("52-54-00-12-34-56"));
    }
}
