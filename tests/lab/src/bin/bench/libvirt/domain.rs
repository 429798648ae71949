//! A guest's definition in libvirt's language, and what libvirt tells of its migration. Pure.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::by_hand::Taken;
use crate::setting::{CPU, MACHINE};

/// A guest as godwit's are, as far as libvirt can say it: one CPU, started from a kernel, with a serial console, a random
/// source and a panic device.
pub struct Domain<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its memory in bytes.
    pub memory: u64,
    /// Whether the processor's virtualisation is used.
    pub kvm: bool,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initial RAM file system.
    pub initramfs: &'a Path,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Where its console is written.
    pub console: &'a str,
}

impl Domain<'_> {
    /// The definition.
    ///
    /// # Errors
    /// When a value has characters that mean something in XML.
    pub fn xml(&self) -> anyhow::Result<String> {
        let (kernel, initramfs) = (
            self.kernel.display().to_string(),
            self.initramfs.display().to_string(),
        );
        for value in [self.name, &kernel, &initramfs, self.command_line, self.console] {
            ensure!(
                !value.contains(['<', '>', '&', '\'']),
                "{value} cannot stand in XML as it is"
            );
        }
        let (name, memory, command_line, console) = (self.name, self.memory, self.command_line, self.console);
        let kind = if self.kvm { "kvm" } else { "qemu" };
        Ok(format!(
            "<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='bytes'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='{MACHINE}'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{command_line}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>{CPU}</model></cpu>
  <clock offset='utc'/>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='file'>
      <source path='{console}' append='on'/>
      <target type='isa-serial' port='0'/>
    </serial>
    <rng model='virtio'>
      <backend model='builtin'/>
      <address type='pci' bus='0' slot='2'/>
    </rng>
    <panic model='isa'/>
  </devices>
</domain>
"
        ))
    }
}

/// What QEMU counted in a migration that is over, from what `domjobinfo --completed --rawstats` prints.
///
/// libvirt does not pass QEMU's time on, but its speed, which is the bytes over the time without the setup, and the
/// setup. Its own time (`time_elapsed`) begins before the other hypervisor is started; that is in `took`. The stop is
/// libvirt's own account, in milliseconds: from QEMU's STOP at the source until the guest was resumed.
///
/// # Errors
/// When a figure is missing or cannot be.
pub fn taken(printed: &str, took: Duration) -> anyhow::Result<Taken> {
    let figure = |name: &str| -> anyhow::Result<u64> {
        let mut lines = printed.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines
            .find(|(key, _)| key.trim() == name)
            .with_context(|| format!("libvirt does not tell {name}: {printed}"))?;
        value
            .trim()
            .parse()
            .with_context(|| format!("{name} is no number: {value}"))
    };
    let bytes = figure("memory_processed")?;
    let each_second = figure("memory_bps")?;
    ensure!(each_second > 0, "a migration had no speed: {printed}");
    let sending = (u128::from(bytes) * 1000 + u128::from(each_second) / 2) / u128::from(each_second);
    let millis = u64::try_from(sending)? + figure("setup_time")?;
    ensure!(millis > 0, "a migration took no time: {printed}");
    Ok(Taken {
        bytes,
        millis,
        stop_to_resume: i64::try_from(figure("downtime")?)? * 1000,
        took,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libvirt 11.3 printed it after a migration for which QEMU's own `total-time` was 2695.
    const PRINTED: &str = "
operation: 6
time_elapsed: 3039
downtime: 77
setup_time: 1
data_processed: 897370984
memory_processed: 897370984
memory_bps: 333099845
success: 1
";

    #[test]
    fn qemus_own_time_is_recovered() -> anyhow::Result<()> {
        let taken = taken(PRINTED, Duration::from_secs(5))?;
        assert_eq!(
            (taken.bytes, taken.millis, taken.stop_to_resume),
            (897_370_984, 2695, 77_000)
        );
        Ok(())
    }

    #[test]
    fn a_figure_that_is_not_there_is_named() {
        let error = taken("memory_processed: 12\n", Duration::ZERO).map_err(|error| error.to_string());
        assert!(error.is_err_and(|error| error.contains("memory_bps")));
    }

    #[test]
    fn what_would_mean_something_in_xml_is_refused() -> anyhow::Result<()> {
        let mut domain = Domain {
            name: "guest",
            memory: 1 << 30,
            kvm: false,
            kernel: Path::new("/pool/vmlinuz"),
            initramfs: Path::new("/pool/initramfs"),
            command_line: "quiet godwit.fill=768M",
            console: "/var/log/libvirt/console.log",
        };
        let xml = domain.xml()?;
        assert!(xml.contains("<memory unit='bytes'>1073741824</memory>"), "{xml}");
        assert!(xml.starts_with("<domain type='qemu'>"), "{xml}");
        domain.command_line = "a<b";
        assert!(domain.xml().is_err());
        Ok(())
    }
}
