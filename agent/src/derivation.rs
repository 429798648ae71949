//! What two agents make from a secret that they share: words and keys for one purpose each (HKDF-SHA-256, RFC 5869). Who
//! has seen one of them knows neither the secret nor another.

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;

/// How long each is, in bytes.
pub const LENGTH: usize = 32;

/// What is made from `secret` for a purpose, which the parts of `purpose` in a row name. `salt` parts the purposes of
/// one kind of secret from anything else that may ever be. The library gives nothing only for lengths that are not asked
/// for here.
pub fn derive(salt: &[u8], secret: &[u8], purpose: &[&[u8]]) -> Option<[u8; LENGTH]> {
    // The suite is of no concern here but for its hash.
    let suite = TLS13_AES_128_GCM_SHA256.tls13()?;
    let expander = suite.hkdf_provider.extract_from_secret(Some(salt), secret);
    let mut bytes = [0; LENGTH];
    expander.expand_slice(purpose, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first test of RFC 5869, which agents of all versions agree on.
    #[test]
    fn it_is_the_function_of_the_standard() {
        let salt: Vec<u8> = (0x00..=0x0c).collect();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let expected = [
            0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a, 0x90, 0x43, 0x4f, 0x64, 0xd0, 0x36, 0x2f, 0x2a,
            0x2d, 0x2d, 0x0a, 0x90, 0xcf, 0x1a, 0x5a, 0x4c, 0x5d, 0xb0, 0x2d, 0x56, 0xec, 0xc4, 0xc5, 0xbf,
        ];
        let secret = [0x0b; 22];
        assert_eq!(derive(&salt, &secret, &[&info]), Some(expected));
        // It counts what stands in a row, not how it is parted.
        let (one, other) = info.split_at(3);
        assert_eq!(derive(&salt, &secret, &[one, other]), Some(expected));
        assert_ne!(derive(b"another", &secret, &[&info]), Some(expected));
    }
}
