//! A guest whose program is one disk sector: it counts on the first serial port, for tests in which Linux is not the point.
//!
//! It writes `B <count> <complement>\n`, both as eight hexadecimal digits, at every tick of the timer, and halts the
//! processor in between. If it is to, it also writes its count to its disk, and reads it again: [`last_writes`] tells what
//! must be there. It obeys single characters on the same port: `p` powers off, `r` resets, `x` reports a panic
//! to a pvpanic device (if the machine has one) and stops.

use anyhow::{Context as _, ensure};

/// Bytes in the sector.
pub const SECTOR_BYTES: usize = 512;

/// Bytes in the whole disk. The firmware boots from no disk that is as small as one sector.
pub const DISK_BYTES: usize = 1 << 20;

/// The longest time between ticks that the machine's timer can be set to.
pub const LONGEST_INTERVAL_MS: u16 = 54;

/// Frequency of the machine's timer (8254), in ticks per second.
const TIMER_HZ: u32 = 1_193_182;

/// What the guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSector {
    /// Milliseconds between ticks, 1 to [`LONGEST_INTERVAL_MS`]; others are moved to the nearer end.
    pub interval_ms: u16,
    /// Power off by itself after this many ticks.
    pub power_off_after: Option<u32>,
    /// Write to the disk: at each tick whose count [`WRITES_EVERY`] divides, the count and its complement, into the sector
    /// of [`SLOTS`] whose turn it is. A write that fails, or is not read again as it was written, stops the guest for good.
    pub writes: bool,
}

/// Every how many ticks it writes to its disk.
pub const WRITES_EVERY: u32 = 8;

/// Into how many sectors, behind the first, in turn.
pub const SLOTS: u32 = 1024;

/// What a guest's disk must hold once it has counted to `count` and no further: for each slot the last count that was
/// written there, 0 for one that has not been written to.
#[must_use]
pub fn last_writes(count: u32) -> Vec<u32> {
    let newest = count / WRITES_EVERY;
    (0..SLOTS)
        .map(|slot| {
            let behind = (newest % SLOTS + SLOTS - slot) % SLOTS;
            newest.checked_sub(behind).map_or(0, |round| round * WRITES_EVERY)
        })
        .collect()
}

/// What the slots of a disk's image hold; an error names the sector that no guest has written so.
///
/// # Errors
/// If the image is too short, or a sector holds something else than a count and its complement.
pub fn written(image: &[u8]) -> anyhow::Result<Vec<u32>> {
    let word = |at: usize| -> anyhow::Result<u32> {
        let bytes = image.get(at..at + 4).context("the image is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    (1..=SLOTS as usize)
        .map(|sector| {
            let at = sector * SECTOR_BYTES;
            let (count, complement) = (word(at)?, word(at + 4)?);
            ensure!(
                complement == !count || (count, complement) == (0, 0),
                "sector {sector} holds {count:#x} {complement:#x}"
            );
            Ok(count)
        })
        .collect()
}

impl Default for BootSector {
    fn default() -> Self {
        Self {
            interval_ms: 5,
            power_off_after: None,
            writes: false,
        }
    }
}

impl BootSector {
    /// A raw disk from which the firmware boots: the sector, and nothing behind it.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        let mut image = self.code();
        image.resize(SECTOR_BYTES - 2, 0);
        image.extend_from_slice(&[0x55, 0xAA]); // by which the firmware knows a boot sector
        image.resize(DISK_BYTES, 0);
        image
    }

    /// 16-bit code, run by the firmware at 0000:7C00. Everything is reached by distance, so its place does not
    /// matter. Routines stand before those who use them; a jump over them comes first.
    fn code(&self) -> Vec<u8> {
        let interval = u32::from(self.interval_ms.clamp(1, LONGEST_INTERVAL_MS));
        let [timer_low, timer_high, _, _] = (TIMER_HZ * interval / 1000).to_le_bytes();
        let mut code = Code(vec![
            0xE9, 0, 0, // jmp start (the distance is filled in below)
        ]);

        // Stop for good.
        let stop = code.add(&[
            0xFA, // cli
            0xF4, // hlt
            0xEB, 0xFC, // jmp stop
        ]);
        // ACPI's soft off: the firmware puts the power management registers of the q35 machine at 0x600.
        let power_off = code.add(&[
            0xBA, 0x04, 0x06, // mov dx, 0x604    PM1a_CNT
            0xB8, 0x00, 0x20, // mov ax, 0x2000   SLP_EN, sleep type 0
            0xEF, // out dx, ax
        ]);
        code.jump(stop);
        let reset = code.add(&[
            0xBA, 0xF9, 0x0C, // mov dx, 0xcf9    reset control
            0xB0, 0x06, // mov al, 6
            0xEE, // out dx, al
        ]);
        code.jump(stop);
        let panic = code.add(&[
            0xBA, 0x05, 0x05, // mov dx, 0x505    pvpanic
            0xB0, 0x01, // mov al, 1        panicked
            0xEE, // out dx, al
        ]);
        code.jump(stop);

        // Writes the character in al. Changes dx.
        let put = code.add(&[
            0x50, // push ax
            0xBA, 0xFD, 0x03, // mov dx, 0x3fd    line status
            0xEC, // wait: in al, dx
            0xA8, 0x20, // test al, 0x20    room to transmit
            0x74, 0xFB, // jz wait
            0x58, // pop ax
            0xBA, 0xF8, 0x03, // mov dx, 0x3f8    data
            0xEE, // out dx, al
            0xC3, // ret
        ]);
        // Writes ecx as eight hexadecimal digits, after a space. Changes al, dx, si.
        let put_hex = code.add(&[
            0xB0, b' ', // mov al, ' '
        ]);
        code.call(put);
        code.add(&[
            0xBE, 0x08, 0x00, // mov si, 8
        ]);
        let digit = code.add(&[
            0x66, 0xC1, 0xC1, 0x04, // rol ecx, 4
            0x88, 0xC8, // mov al, cl
            0x24, 0x0F, // and al, 15
            0x3C, 0x0A, // cmp al, 10
            0x72, 0x02, // jb decimal
            0x04, 0x27, // add al, 'a' - '0' - 10
            0x04, 0x30, // decimal: add al, '0'
        ]);
        code.call(put);
        code.add(&[
            0x4E, // dec si
        ]);
        code.jump_if(IF_NOT_ZERO, digit);
        code.add(&[
            0xC3, // ret
        ]);

        let start = code.add(&[
            0xFA, // cli
            0x31, 0xC0, // xor ax, ax
            0x8E, 0xD0, // mov ss, ax
            0x8E, 0xD8, // mov ds, ax
            0xBC, 0x00, 0x7C, // mov sp, 0x7c00   the stack grows down from here
            0xBA, 0xFB, 0x03, // mov dx, 0x3fb    line control
            0xB0, 0x80, // mov al, 0x80     divisor latch
            0xEE, // out dx, al
            0xBA, 0xF8, 0x03, // mov dx, 0x3f8
            0xB0, 0x01, // mov al, 1        divisor 1: 115200 baud
            0xEE, // out dx, al
            0x42, // inc dx
            0x30, 0xC0, // xor al, al
            0xEE, // out dx, al
            0xBA, 0xFB, 0x03, // mov dx, 0x3fb
            0xB0, 0x03, // mov al, 3        8 bits, no parity, 1 stop bit
            0xEE, // out dx, al
            0xBA, 0xFA, 0x03, // mov dx, 0x3fa    queues
            0xB0, 0x07, // mov al, 7        on and empty
            0xEE, // out dx, al
            0xB0, 0x34, // mov al, 0x34     timer 0: both bytes, mode 2
            0xE6, 0x43, // out 0x43, al
            0xB0, timer_low, // mov al, low
            0xE6, 0x40, // out 0x40, al
            0xB0, timer_high, // mov al, high
            0xE6, 0x40, // out 0x40, al
            0x66, 0x31, 0xDB, // xor ebx, ebx     the count
        ]);
        let tick = code.add(&[
            0xFB, // sti
            0xF4, // hlt              until the timer's interrupt; the firmware's handler acknowledges it
            0xFA, // cli
            0x66, 0x43, // inc ebx
            0xB0, b'B', // mov al, 'B'
        ]);
        code.call(put);
        code.add(&[
            0x66, 0x89, 0xD9, // mov ecx, ebx
        ]);
        code.call(put_hex);
        code.add(&[
            0x66, 0x89, 0xD9, // mov ecx, ebx
            0x66, 0xF7, 0xD1, // not ecx
        ]);
        code.call(put_hex);
        code.add(&[
            0xB0, b'\n', // mov al, '\n'
        ]);
        code.call(put);
        if self.writes {
            code.write_count(stop);
        }
        if let Some(last) = self.power_off_after {
            code.add(&[
                0x66, 0x81, 0xFB, // cmp ebx, last
            ]);
            code.add(&last.to_le_bytes());
            code.jump_if(IF_NOT_BELOW, power_off);
        }
        code.add(&[
            0xBA, 0xFD, 0x03, // mov dx, 0x3fd    line status
            0xEC, // in al, dx
            0xA8, 0x01, // test al, 1       something received
        ]);
        code.jump_if(IF_ZERO, tick);
        code.add(&[
            0xBA, 0xF8, 0x03, // mov dx, 0x3f8    data
            0xEC, // in al, dx
        ]);
        for (character, routine) in [(b'p', power_off), (b'r', reset), (b'x', panic)] {
            code.add(&[
                0x3C, character, // cmp al, character
            ]);
            code.jump_if(IF_ZERO, routine);
        }
        code.jump(tick);
        code.fill_in_first_jump(start);
        code.0
    }
}

// Second bytes of the conditional jumps over a 16-bit distance.
const IF_ZERO: u8 = 0x84;
const IF_NOT_ZERO: u8 = 0x85;
const IF_NOT_BELOW: u8 = 0x83;
const IF_CARRY: u8 = 0x82;

struct Code(Vec<u8>);

impl Code {
    /// Writes the count in ebx to the disk if it is its turn, by the firmware, and reads it again; jumps to `failed` if it
    /// is not there. Changes eax, dx, si.
    fn write_count(&mut self, failed: u16) {
        // The firmware's packet lies at 0x7e00; the sector is written from 0x8000 and read to 0x8200.
        let block = [
            0xC7, 0x06, 0x00, 0x7E, 0x10, 0x00, // mov word [0x7e00], 16    the packet's length
            0xC7, 0x06, 0x02, 0x7E, 0x01, 0x00, // mov word [0x7e02], 1     one sector
            0xC7, 0x06, 0x04, 0x7E, 0x00, 0x80, // mov word [0x7e04], 0x8000
            0xC7, 0x06, 0x06, 0x7E, 0x00, 0x00, // mov word [0x7e06], 0     its segment
            0x66, 0x89, 0xD8, // mov eax, ebx
            0x66, 0xC1, 0xE8, 0x03, // shr eax, 3
            0x66, 0x25, 0xFF, 0x03, 0x00, 0x00, // and eax, 1023
            0x66, 0x40, // inc eax
            0x66, 0xA3, 0x08, 0x7E, // mov [0x7e08], eax        the sector's number
            0x66, 0x31, 0xC0, // xor eax, eax
            0x66, 0xA3, 0x0C, 0x7E, // mov [0x7e0c], eax
            0x66, 0x89, 0x1E, 0x00, 0x80, // mov [0x8000], ebx
            0x66, 0x89, 0xD8, // mov eax, ebx
            0x66, 0xF7, 0xD0, // not eax
            0x66, 0xA3, 0x04, 0x80, // mov [0x8004], eax
            0xB8, 0x00, 0x43, // mov ax, 0x4300           write
            0xB2, 0x80, // mov dl, 0x80             to the first disk
            0xBE, 0x00, 0x7E, // mov si, 0x7e00
            0xCD, 0x13, // int 0x13
        ];
        let begun = self.add(&[
            0xF6,
            0xC3,
            0x07, // test bl, 7
            0x0F,
            IF_NOT_ZERO,
            0,
            0, // jnz past all of this (filled in below)
        ]);
        self.add(&block);
        self.jump_if(IF_CARRY, failed);
        self.add(&[
            0xC7, 0x06, 0x04, 0x7E, 0x00, 0x82, // mov word [0x7e04], 0x8200
            0xB4, 0x42, // mov ah, 0x42             read
            0xB2, 0x80, // mov dl, 0x80
            0xBE, 0x00, 0x7E, // mov si, 0x7e00
            0xCD, 0x13, // int 0x13
        ]);
        self.jump_if(IF_CARRY, failed);
        self.add(&[
            0x66, 0x39, 0x1E, 0x00, 0x82, // cmp [0x8200], ebx
        ]);
        self.jump_if(IF_NOT_ZERO, failed);
        self.fill_in_distance(begun + 5);
    }

    /// Appends bytes and says where they begin.
    fn add(&mut self, bytes: &[u8]) -> u16 {
        let at = self.here();
        self.0.extend_from_slice(bytes);
        at
    }

    fn call(&mut self, target: u16) {
        self.0.push(0xE8);
        self.distance(target);
    }

    fn jump(&mut self, target: u16) {
        self.0.push(0xE9);
        self.distance(target);
    }

    fn jump_if(&mut self, condition: u8, target: u16) {
        self.0.extend_from_slice(&[0x0F, condition]);
        self.distance(target);
    }

    /// Appends the distance from the end of the instruction that ends with it.
    fn distance(&mut self, target: u16) {
        let distance = target.wrapping_sub(self.here() + 2);
        self.0.extend_from_slice(&distance.to_le_bytes());
    }

    fn fill_in_first_jump(&mut self, target: u16) {
        let distance = target.wrapping_sub(3).to_le_bytes();
        for (byte, filled) in self.0.iter_mut().skip(1).zip(distance) {
            *byte = filled;
        }
    }

    /// Fills in the distance at `at`, of a jump to here.
    fn fill_in_distance(&mut self, at: u16) {
        let distance = self.here().wrapping_sub(at + 2).to_le_bytes();
        for (byte, filled) in self.0.iter_mut().skip(at.into()).zip(distance) {
            *byte = filled;
        }
    }

    fn here(&self) -> u16 {
        // The code has to fit in a sector; `image` makes the length visible if it ever does not.
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_in_front_of_the_signature() {
        for (power_off_after, writes) in [(None, false), (Some(1), false), (None, true), (Some(1), true)] {
            let sector = BootSector {
                power_off_after,
                writes,
                ..BootSector::default()
            };
            assert!(
                sector.code().len() <= SECTOR_BYTES - 2 - 64,
                "no room for a partition table"
            );
            let image = sector.image();
            assert_eq!(image.len(), DISK_BYTES);
            assert_eq!(image[510..512], [0x55, 0xAA]);
        }
    }

    #[test]
    fn the_timer_is_set_to_the_interval() {
        // mov al, low / out 0x40, al / mov al, high / out 0x40, al
        let timer = |interval_ms| {
            let code = BootSector {
                interval_ms,
                ..BootSector::default()
            }
            .code();
            let at = code.windows(2).position(|pair| pair == [0xE6, 0x43]).unwrap();
            u16::from_le_bytes([code[at + 3], code[at + 7]])
        };
        assert_eq!(timer(5), 5965);
        assert_eq!(timer(54), 64431);
        assert_eq!(timer(0), timer(1));
        assert_eq!(timer(1000), timer(54));
    }

    #[test]
    fn what_a_disk_must_hold() {
        assert_eq!(last_writes(0), vec![0; 1024]);
        assert_eq!(last_writes(7), vec![0; 1024]);
        let early = last_writes(17);
        assert_eq!(early[..4], [0, 8, 16, 0]);
        // Slot 0 has been written again, 1 and the rest not yet.
        let later = last_writes(8 * 1024 + 3);
        assert_eq!((later[0], later[1], later[1023]), (8 * 1024, 8, 8 * 1023));
        let late = last_writes(8 * (3 * 1024 + 5));
        assert_eq!((late[5], late[6]), (8 * (3 * 1024 + 5), 8 * (2 * 1024 + 6)));
    }

    #[test]
    fn a_disk_is_read_as_it_was_written() {
        let mut image = BootSector::default().image();
        assert_eq!(written(&image).unwrap(), vec![0; 1024]);
        image[SECTOR_BYTES * 2..][..4].copy_from_slice(&8u32.to_le_bytes());
        assert!(written(&image).is_err(), "half a write");
        image[SECTOR_BYTES * 2 + 4..][..4].copy_from_slice(&(!8u32).to_le_bytes());
        assert_eq!(written(&image).unwrap()[..3], [0, 8, 0]);
        assert!(written(&image[..SECTOR_BYTES]).is_err());
    }
}
