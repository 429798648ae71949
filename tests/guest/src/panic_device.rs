//! Telling the machine that the guest panics.
//!
//! A kernel does this with its pvpanic driver, but in distributions' kernels that is a module, and there are no modules
//! here. So the guest's program writes to the device itself what the driver would write, just before the panic.

/// Where the machine's pvpanic device listens, if it has one; else nobody does, and a write has no effect.
const PORT: u16 = 0x505;

/// What a driver writes there when its guest panics.
const PANICKED: u8 = 1;

/// Reports a panic.
///
/// # Errors
/// When the kernel does not let this process use the port; the panic is then not reported.
#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "there is no safe way to a port; this module is the only place that needs one"
)]
pub fn report() -> std::io::Result<()> {
    const SYS_IOPERM: i64 = 173;
    let result: i64;
    // SAFETY: ioperm(from, count, on) touches no memory of this process. The system call changes rax, rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") SYS_IOPERM => result,
            in("rdi") i64::from(PORT), in("rsi") 1_i64, in("rdx") 1_i64,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if result != 0 {
        return Err(std::io::Error::from_raw_os_error(
            i32::try_from(-result).unwrap_or(0),
        ));
    }
    // SAFETY: this port was just allowed, and a write to it touches no memory.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") PORT, in("al") PANICKED, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
