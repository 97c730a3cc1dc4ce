//! Tickets: what DoGet needs to run what GetFlightInfo planned, sealed, so that nothing waits on the server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use tonic::Status;
use updraft_auth::{Principal, Sealer};
use updraft_proto::v1::Ticket;

const PURPOSE: &str = "ticket";

/// Seals `ticket`, valid for `ttl` from now.
pub(crate) fn seal(sealer: &Sealer, mut ticket: Ticket, ttl: Duration) -> Vec<u8> {
    ticket.expires_at_seconds = now().saturating_add_unsigned(ttl.as_secs());
    sealer.seal(PURPOSE, &ticket.encode_to_vec())
}

/// Opens a ticket of `principal`.
///
/// # Errors
/// INVALID_ARGUMENT for what we did not seal; PERMISSION_DENIED for the ticket of another;
/// FAILED_PRECONDITION for one that has expired.
pub(crate) fn open(sealer: &Sealer, sealed: &[u8], principal: &Principal) -> Result<Ticket, Status> {
    let ticket = open_expired(sealer, sealed, principal)?;
    if ticket.expires_at_seconds < now() {
        return Err(Status::failed_precondition("the ticket has expired; run the query again"));
    }
    Ok(ticket)
}

/// As [`open`], but an expired ticket is fine: it still names its query, for cancelling.
pub(crate) fn open_expired(sealer: &Sealer, sealed: &[u8], principal: &Principal) -> Result<Ticket, Status> {
    let bad = || Status::invalid_argument("this is not a ticket of this server; use the one from GetFlightInfo");
    let message = sealer.open(PURPOSE, sealed).map_err(|_| bad())?;
    let ticket = Ticket::decode(message).map_err(|_| bad())?;
    if ticket.principal != principal.name() {
        return Err(Status::permission_denied("the ticket was given to another principal"));
    }
    Ok(ticket)
}

/// Opens any bytes as a ticket; for fuzzing. Returns whether they were one.
pub fn open_for_fuzzing(sealer: &Sealer, sealed: &[u8]) -> bool {
    open(sealer, sealed, &Principal::anonymous()).is_ok()
}

/// When a ticket sealed now with this `ttl` ends.
pub(crate) fn expiry(ttl: Duration) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: now().saturating_add_unsigned(ttl.as_secs()), nanos: 0 }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn only_an_own_fresh_whole_ticket_opens() {
        let sealer = Sealer::new(&[7; 32]);
        let ann = Principal::new("ann");
        let ticket = Ticket { principal: "ann".into(), query: vec![1; 16], ..Ticket::default() };
        let code =
            |sealed: &[u8], principal: &Principal| open(&sealer, sealed, principal).err().map(|status| status.code());

        let sealed = seal(&sealer, ticket.clone(), Duration::from_secs(60));
        assert_eq!(code(&sealed, &ann), None);
        assert_eq!(code(&sealed, &Principal::new("bob")), Some(Code::PermissionDenied));
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(code(&altered, &ann), Some(Code::InvalidArgument), "byte {at}");
            assert_eq!(code(&sealed[..at], &ann), Some(Code::InvalidArgument), "cut at {at}");
        }
        let expired = Ticket { expires_at_seconds: now() - 1, ..ticket };
        let expired = sealer.seal(PURPOSE, &expired.encode_to_vec());
        assert_eq!(code(&expired, &ann), Some(Code::FailedPrecondition));
        assert!(open_expired(&sealer, &expired, &ann).is_ok());
        let token = sealer.seal("token", b"");
        assert_eq!(code(&token, &ann), Some(Code::InvalidArgument), "sealed for another purpose");
    }
}
