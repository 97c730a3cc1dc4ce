use ring::digest;
use subtle::ConstantTimeEq;

use crate::Error;
use crate::seal::{decode_hex, encode_hex, random_bytes};

/// What every API token starts with, so that secret scanners and people know one when they see it.
const PREFIX: &str = "updraft_";
const HASH_PREFIX: &str = "sha256:";

/// Makes an API token `updraft_<name>_<64 hex digits>` and the `sha256:<hex>` to put into the config. A plain hash is
/// enough: 256 random bits cannot be guessed, unlike a password.
///
/// Errors: [`Error::Malformed`] for a name that cannot be part of a token, [`Error::Internal`] without random bytes.
pub fn new_api_token(name: &str) -> Result<(String, String), Error> {
    if !valid_name(name) {
        return Err(Error::Malformed("the token's name must be 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.'"));
    }
    let secret = encode_hex(&*random_bytes::<32>()?);
    let token = format!("{PREFIX}{name}_{secret}");
    let hash = format!("{HASH_PREFIX}{}", encode_hex(&sha256(token.as_bytes())));
    Ok((token, hash))
}

/// The name inside an API token. `None` for any other kind of token.
pub(crate) fn name_of(token: &str) -> Option<&str> {
    // The secret is hex, so the last underscore is the border even when the name has some.
    token.strip_prefix(PREFIX)?.rsplit_once('_').map(|(name, _)| name)
}

/// Compares a token with its hash in constant time.
pub(crate) fn verify(token: &str, hash: &[u8; 32]) -> bool {
    sha256(token.as_bytes()).ct_eq(hash).into()
}

/// Reads `sha256:<64 hex digits>`.
pub(crate) fn parse_hash(text: &str) -> Option<[u8; 32]> {
    decode_hex(text.trim().strip_prefix(HASH_PREFIX)?)?.try_into().ok()
}

pub(crate) fn valid_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_matches_its_hash_and_carries_its_name() {
        for name in ["ci", "etl_nightly", "a.b-c"] {
            let (token, hash) = new_api_token(name).unwrap();
            assert_eq!(name_of(&token), Some(name));
            let hash = parse_hash(&hash).unwrap();
            assert!(verify(&token, &hash));
            assert!(!verify(&token[..token.len() - 1], &hash));
            assert!(!verify(&new_api_token(name).unwrap().0, &hash), "a second token is another one");
        }
    }

    #[test]
    fn names_and_hashes_that_are_refused() {
        for name in ["", "a b", "ä", &"a".repeat(65)] {
            assert!(new_api_token(name).is_err(), "{name}");
        }
        for hash in ["", "sha256:", "sha256:ab", "md5:00", &format!("sha256:{}", "zz".repeat(32))] {
            assert_eq!(parse_hash(hash), None, "{hash}");
        }
        for token in ["", "updraft_", "updraft_ci", "other_ci_00"] {
            assert_eq!(name_of(token), None, "{token}");
        }
    }
}
