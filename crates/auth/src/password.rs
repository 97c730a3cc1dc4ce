use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, Params, PasswordHasher, PasswordVerifier};

use crate::Error;

/// Most memory one password check may take, in KiB. A hash that asks for more is a mistake in the config, and would
/// let each login take that much.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
/// Most passes over that memory, for the same reason.
const PASSES_MAX: u32 = 64;

/// Hashes a password for the config with argon2id and a random salt, as a PHC string
/// (`$argon2id$v=19$m=19456,t=2,p=1$...`). Takes some 20 ms of CPU and 19 MiB, the OWASP recommendation.
///
/// Errors: [`Error::Internal`] when the operating system has no random bytes.
pub fn hash_password(password: &str) -> Result<String, Error> {
    Argon2::default()
        .hash_password(password.as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|_| Error::Internal { step: "hashing the password" })
}

/// Checks a PHC string from the config; `Err` says what is wrong with it and what would be right.
pub(crate) fn parse_hash(text: &str) -> Result<PasswordHash, String> {
    let right = "make one with `updraft password`";
    let hash = PasswordHash::new(text.trim()).map_err(|_| format!("is not an argon2id hash; {right}"))?;
    if hash.algorithm.as_str() != "argon2id" {
        return Err(format!("is a hash of kind {}, expected argon2id; {right}", hash.algorithm));
    }
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err(format!("lacks its salt or its hash; {right}"));
    }
    let params = Params::try_from(&hash).map_err(|_| format!("has parameters that argon2 refuses; {right}"))?;
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
        return Err(format!(
            "takes m={} KiB and t={} passes for each login, more than m={MEMORY_KIB_MAX}, t={PASSES_MAX}; {right}",
            params.m_cost(),
            params.t_cost()
        ));
    }
    Ok(hash)
}

/// Checks a password. Slow by design: run it off the runtime's threads.
pub(crate) fn verify(hash: &PasswordHash, password: &str) -> bool {
    Argon2::default().verify_password(password.as_bytes(), hash).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_and_no_other() {
        let text = hash_password("correct horse").unwrap();
        assert!(text.starts_with("$argon2id$v=19$"), "{text}");
        let hash = parse_hash(&text).unwrap();
        assert!(verify(&hash, "correct horse"));
        assert!(!verify(&hash, "correct horse "));
        assert!(!verify(&hash, ""));
        assert_ne!(text, hash_password("correct horse").unwrap(), "salted");
    }

    #[test]
    fn hashes_that_are_refused() {
        let cases = [
            ("", "is not an argon2id hash"),
            ("hunter2", "is not an argon2id hash"),
            ("$argon2id$v=19$m=8,t=1,p=1", "lacks its salt"),
            ("$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$+r0d29hqEB0yasKr55ZgICsQGSkl0v0kgwhd+U3wyRo", "of kind argon2i,"),
            (
                "$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$eP4eyR+zqlZX1y5xCFTkw9m5GYx0L5YWwvCFvtlbLow",
                "takes m=4194304 KiB",
            ),
        ];
        for (text, expected) in cases {
            let problem = parse_hash(text).unwrap_err();
            assert!(problem.contains(expected) && problem.contains("updraft password"), "{text}: {problem}");
        }
    }
}
