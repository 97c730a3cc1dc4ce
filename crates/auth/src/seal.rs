use std::sync::Arc;

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::Error;
use crate::credential::decode_base64;

/// First byte of everything sealed, so that a later format can tell itself apart.
const VERSION: u8 = 1;
/// Bytes of an HMAC-SHA256.
const TAG_BYTES: usize = 32;
/// Shortest key that is taken, in bytes: as long as the tag, as RFC 2104 asks for.
pub(crate) const KEY_BYTES_MIN: usize = 32;

/// Seals messages that clients carry for the server, with HMAC-SHA256. A seal hides nothing; it proves that this server
/// (or one with the same key) made the message, for this purpose. Cloning is cheap.
///
/// Each purpose has its own key, derived as HMAC(key, label, purpose): a token can never pass for a ticket.
#[derive(Clone)]
pub struct Sealer(Arc<hmac::Key>);

impl Sealer {
    /// A sealer with this key. Two servers with the same key open each other's messages.
    pub fn new(key: &[u8]) -> Self {
        Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// A sealer with a key that nobody else has and that is gone with the process.
    ///
    /// Errors: [`Error::Internal`] when the operating system has no random bytes.
    pub fn random() -> Result<Self, Error> {
        let key = random_bytes::<KEY_BYTES_MIN>()?;
        Ok(Self::new(&*key))
    }

    /// Appends the seal. Layout: version (1 byte), message, HMAC (32 bytes).
    pub fn seal(&self, purpose: &str, message: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(1 + message.len() + TAG_BYTES);
        sealed.push(VERSION);
        sealed.extend_from_slice(message);
        let tag = hmac::sign(&self.key(purpose), &sealed);
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// The message inside, if its seal is whole. The comparison takes constant time.
    ///
    /// Errors: [`Error::Seal`] for anything this server did not seal for this purpose.
    pub fn open<'a>(&self, purpose: &str, sealed: &'a [u8]) -> Result<&'a [u8], Error> {
        let body_bytes = sealed.len().checked_sub(TAG_BYTES).ok_or(Error::Seal)?;
        let (body, tag) = sealed.split_at(body_bytes);
        let (version, message) = body.split_first().ok_or(Error::Seal)?;
        if *version != VERSION {
            return Err(Error::Seal);
        }
        hmac::verify(&self.key(purpose), body, tag).map_err(|_| Error::Seal)?;
        Ok(message)
    }

    fn key(&self, purpose: &str) -> hmac::Key {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(b"updraft seal v1\0");
        context.update(purpose.as_bytes());
        hmac::Key::new(hmac::HMAC_SHA256, context.sign().as_ref())
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// Reads a configured key: hex if it is hex, else base64 of any kind. `None` when it is neither or too short.
pub(crate) fn parse_key(text: &SecretString) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.expose_secret().trim();
    let key = Zeroizing::new(match decode_hex(text) {
        Some(key) => key,
        None => decode_base64(text.as_bytes())?,
    });
    (key.len() >= KEY_BYTES_MIN).then_some(key)
}

/// Random bytes from the operating system.
pub(crate) fn random_bytes<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0u8; N]);
    SystemRandom::new().fill(&mut *bytes).map_err(|_| Error::Internal { step: "reading random bytes" })?;
    Ok(bytes)
}

pub(crate) fn encode_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn decode_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn opens_what_it_sealed_for_the_same_purpose_only() {
        let sealer = Sealer::new(&[7; 32]);
        for message in [b"".as_slice(), b"x", &[0; 1000]] {
            let sealed = sealer.seal("ticket", message);
            assert_eq!(sealer.open("ticket", &sealed).unwrap(), message);
            assert_eq!(sealer.clone().open("ticket", &sealed).unwrap(), message);
            assert_eq!(sealer.open("token", &sealed), Err(Error::Seal));
            assert_eq!(Sealer::new(&[8; 32]).open("ticket", &sealed), Err(Error::Seal));
            assert_eq!(Sealer::random().unwrap().open("ticket", &sealed), Err(Error::Seal));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_breaks_the_seal() {
        let sealer = Sealer::new(&[7; 32]);
        let sealed = sealer.seal("ticket", b"select 1");
        for bit in 0..sealed.len() * 8 {
            let mut forged = sealed.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sealer.open("ticket", &forged), Err(Error::Seal), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert_eq!(sealer.open("ticket", &sealed[..length]), Err(Error::Seal), "length {length}");
            assert_eq!(sealer.open("ticket", &sealed[sealed.len() - length..]), Err(Error::Seal));
        }
        assert_eq!(sealer.open("ticket", &[sealed.as_slice(), b"x"].concat()), Err(Error::Seal));
    }

    #[test]
    fn keys_are_hex_or_base64_of_32_bytes() {
        let parsed = |text: &str| parse_key(&SecretString::from(text)).map(|key| key.to_vec());
        assert_eq!(parsed(&"ab".repeat(32)), Some(vec![0xab; 32]));
        assert_eq!(parsed("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="), Some(vec![0xab; 32]));
        assert_eq!(parsed("q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s"), Some(vec![0xab; 32]));
        for bad in ["", "abc", &"ab".repeat(31), "not a key, too many words in it to be one"] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
