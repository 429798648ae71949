//! What is sent through a pair of relays, and how long it takes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use super::pair::Ends;

const MEBIBYTE: usize = 1024 * 1024;

/// What is written at once, and read at once.
const WRITE: usize = 256 * 1024;
const READ: usize = MEBIBYTE;

/// A hypervisor's send buffer, for all kinds alike.
const SEND_BUFFER: usize = 512 * 1024;

/// Between two words on the return path, and how many there are in a round.
const BETWEEN: Duration = Duration::from_millis(2);
const WORDS: usize = 500;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes that cannot be compressed; all of them are sent in turn.
static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 4 * MEBIBYTE];
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    for word in bytes.as_chunks_mut::<8>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word = state.to_le_bytes();
    }
    bytes
});

/// Sends so much forward, split among the channels; from the first byte until all ends are seen.
pub fn forward(channels: Vec<Ends>, mebibytes: usize) -> anyhow::Result<Duration> {
    let each = mebibytes * MEBIBYTE / channels.len();
    LazyLock::force(&RANDOM);
    prepare(&channels)?;
    let begun = Instant::now();
    let mut threads = vec![];
    for Ends { mut near, mut far } in channels {
        threads.push(std::thread::spawn(move || -> anyhow::Result<()> {
            let mut left = each;
            for piece in RANDOM.chunks(WRITE).cycle() {
                let piece = piece.get(..left.min(WRITE)).unwrap_or_default();
                near.write_all(piece)?;
                left -= piece.len();
                if left == 0 {
                    break;
                }
            }
            near.shutdown(Shutdown::Write)?;
            // Until the other side has ended as well, the channel is there.
            ensure!(near.read(&mut [0; 1])? == 0, "something came back");
            Ok(())
        }));
        threads.push(std::thread::spawn(move || -> anyhow::Result<()> {
            let mut buffer = vec![0; READ];
            let mut read = 0;
            loop {
                match far.read(&mut buffer)? {
                    0 => break,
                    some => read += some,
                }
            }
            ensure!(read == each, "{read} of {each} bytes have arrived");
            Ok(far.shutdown(Shutdown::Write)?)
        }));
    }
    for thread in threads {
        join(thread)?;
    }
    Ok(begun.elapsed())
}

/// How long a word takes on the return path while the forward direction is saturated: in milliseconds, for each round.
pub fn return_path(channels: &[Ends], rounds: usize) -> anyhow::Result<Vec<Vec<f64>>> {
    let flow = Flow::start(channels, false)?;
    let ends = channels.first().context("there is a channel")?;
    let (mut near, mut far) = (ends.near.try_clone()?, ends.far.try_clone()?);
    let begun = Instant::now();
    flow.carried(64)?;
    let words = (rounds + 1) * WORDS;
    let sender = std::thread::spawn(move || -> anyhow::Result<()> {
        for _ in 0..words {
            let now = u64::try_from(begun.elapsed().as_nanos())?;
            far.write_all(&now.to_le_bytes())?;
            std::thread::sleep(BETWEEN);
        }
        Ok(())
    });
    let mut all = vec![];
    for _ in 0..words {
        let mut word = [0; 8];
        near.read_exact(&mut word)?;
        let sent = Duration::from_nanos(u64::from_le_bytes(word));
        all.push(begun.elapsed().saturating_sub(sent).as_secs_f64() * 1000.0);
    }
    join(sender)?;
    flow.stop();
    // One round to warm up.
    Ok(all.chunks(WORDS).skip(1).map(<[f64]>::to_vec).collect())
}

/// The one below which 99 of 100 are.
pub fn percentile_99(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * 99 / 100).copied()
}

fn prepare(channels: &[Ends]) -> anyhow::Result<()> {
    for ends in channels {
        for socket in [&ends.near, &ends.far] {
            rustix::net::sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
        }
    }
    Ok(())
}

/// Channels that are kept busy until that is stopped.
pub struct Flow {
    carried: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    sockets: Vec<UnixStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Flow {
    /// In both directions.
    ///
    /// # Errors
    /// When sockets cannot be cloned.
    pub fn both_ways(channels: &[Ends]) -> anyhow::Result<Self> {
        Self::start(channels, true)
    }

    fn start(channels: &[Ends], back: bool) -> anyhow::Result<Self> {
        LazyLock::force(&RANDOM);
        prepare(channels)?;
        let mut flow = Self {
            carried: Arc::default(),
            over: Arc::default(),
            sockets: vec![],
            threads: vec![],
        };
        for ends in channels {
            flow.sockets.push(ends.near.try_clone()?);
            flow.sockets.push(ends.far.try_clone()?);
            flow.direction(&ends.near, &ends.far)?;
            if back {
                flow.direction(&ends.far, &ends.near)?;
            }
        }
        Ok(flow)
    }

    fn direction(&mut self, from: &UnixStream, to: &UnixStream) -> anyhow::Result<()> {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        let (carried, over) = (Arc::clone(&self.carried), Arc::clone(&self.over));
        self.threads.push(std::thread::spawn(move || {
            for piece in RANDOM.chunks(WRITE).cycle() {
                if over.load(Ordering::Relaxed) || from.write_all(piece).is_err() {
                    return;
                }
            }
        }));
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; READ];
            loop {
                match to.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(some) => {
                        carried.fetch_add(some as u64, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        }));
        Ok(())
    }

    /// Waits until so much has been carried in all.
    ///
    /// # Errors
    /// When it stands still.
    pub fn carried(&self, mebibytes: usize) -> anyhow::Result<()> {
        let wanted = u64::try_from(mebibytes * MEBIBYTE)?;
        let until = Instant::now() + PATIENCE;
        while self.carried.load(Ordering::Relaxed) < wanted {
            if Instant::now() > until {
                bail!("nothing is carried any more");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Breaks it off.
    pub fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // It may have broken already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads {
            // Its own errors are those of what was broken off.
            let _ = thread.join();
        }
    }
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("a thread of the bench has panicked"))?
}
