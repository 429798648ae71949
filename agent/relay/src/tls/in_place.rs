//! Plaintext where it was decrypted.
//!
//! The library decrypts a record in the buffer that it came in, and then copies what was in it into a vector of its own,
//! once for each record. All that a relay does with it is to write it to a socket. So while a thread notes where
//! plaintext lies, the library is shown the first byte only of each record of data. Whether the record is authentic,
//! its order, its kind and all that follows from it stays with the library. (It is not shown an empty record, because
//! it takes only so many of those in a row.)

use std::cell::RefCell;
use std::ops::Range;
use std::sync::LazyLock;

use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter,
    Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::{
    CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, SupportedCipherSuite, Tls13CipherSuite,
};

/// Where plaintext lies, counted from an address.
struct Notes {
    base: usize,
    places: Vec<Range<usize>>,
}

thread_local! {
    /// This thread's, while it takes them.
    static NOTES: RefCell<Option<Notes>> = const { RefCell::new(None) };
}

/// Appends where the plaintext lies that is decrypted meanwhile on this thread: for each record of data that is not
/// empty, its place counted from the buffer's beginning.
pub(super) fn note<R>(buffer: *const u8, places: &mut Vec<Range<usize>>, meanwhile: impl FnOnce() -> R) -> R {
    NOTES.set(Some(Notes {
        base: buffer.addr(),
        places: std::mem::take(places),
    }));
    let result = meanwhile();
    *places = NOTES.take().map(|notes| notes.places).unwrap_or_default();
    result
}

/// The library's own suites, with the notes. AES with 128 bits comes first, because it is the fastest where the
/// processor helps, and as good.
pub(super) fn suites() -> Vec<SupportedCipherSuite> {
    SUITES.iter().map(SupportedCipherSuite::Tls13).collect()
}

static SUITES: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let noting = |algorithm: &'static Noting| Tls13CipherSuite {
        common: CipherSuiteCommon { ..algorithm.0.common },
        hkdf_provider: algorithm.0.hkdf_provider,
        aead_alg: algorithm,
        quic: None,
    };
    ALGORITHMS.iter().map(noting).collect()
});

static ALGORITHMS: LazyLock<Vec<Noting>> = LazyLock::new(|| {
    let suites = [
        &cipher_suite::TLS13_AES_128_GCM_SHA256,
        &cipher_suite::TLS13_AES_256_GCM_SHA384,
        &cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    suites
        .iter()
        .filter_map(|suite| suite.tls13())
        .map(Noting)
        .collect()
});

/// A suite's algorithm, whose decryption is noted.
struct Noting(&'static Tls13CipherSuite);

impl Tls13AeadAlgorithm for Noting {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.0.aead_alg.encrypter(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Decrypter(self.0.aead_alg.decrypter(key, iv)))
    }

    fn key_len(&self) -> usize {
        self.0.aead_alg.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.aead_alg.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.aead_alg.fips()
    }
}

struct Decrypter(Box<dyn MessageDecrypter>);

impl MessageDecrypter for Decrypter {
    fn decrypt<'a>(
        &mut self,
        record: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let mut plain = self.0.decrypt(record, number)?;
        if plain.typ == ContentType::ApplicationData {
            NOTES.with_borrow_mut(|notes| {
                if let (Some(notes), Some(first)) = (notes, plain.payload.get(..1)) {
                    let start = plain.payload.as_ptr().addr().wrapping_sub(notes.base);
                    notes.places.push(start..start.wrapping_add(plain.payload.len()));
                    plain.payload = first;
                }
            });
        }
        Ok(plain)
    }
}
