//! Prepared statements: described once, bound and run many times. Their plans are kept by `plan_cache`, for all who prepare
//! the same.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use parking_lot::Mutex;
use updraft_auth::Principal;
use uuid::Uuid;

use crate::config::Config;
use crate::error::Error;
use crate::expiring::{Expiring, WhenFull};
use crate::memory::UploadMemory;
use crate::params::Types;
use crate::plan::Statement;
use crate::session::{Session, SessionId};
use crate::sql::Placeholders;

/// At the bound of all statements, those that nobody used for so long make room: many clients go away without closing theirs.
const UNUSED: Duration = Duration::from_secs(60);

/// What a client calls a prepared statement. Random, so that nobody guesses another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PreparedHandle(Uuid);

impl PreparedHandle {
    pub(crate) fn new() -> Self {
        Self(Uuid::new_v4())
    }

    /// The handle of these 16 bytes; `None` for any other number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().map(Self)
    }

    /// 16 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A parameter of a prepared statement, in the order of binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// `1`, `2`, ... or its name.
    pub name: String,
    /// The type the statement gives it, where it gives one.
    pub data_type: Option<DataType>,
}

/// What a client is told of a statement that it prepares.
#[derive(Debug, Default)]
pub(crate) struct Described {
    pub(crate) placeholders: Placeholders,
    pub(crate) types: Types,
    /// The schema of its result before parameters are bound; `None` when it returns no rows.
    pub(crate) schema: Option<SchemaRef>,
}

/// Rows of parameters that a client has bound.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) batches: Vec<RecordBatch>,
    /// What they take. Held as long as they are, by whoever still has them.
    pub(crate) _memory: UploadMemory,
}

/// A prepared statement.
#[derive(Debug)]
pub struct Prepared {
    pub(crate) handle: PreparedHandle,
    pub(crate) principal: Principal,
    pub(crate) session: SessionId,
    pub(crate) statement: Statement,
    /// In common with all who have prepared the same.
    pub(crate) described: Arc<Described>,
    pub(crate) bound: Mutex<Option<Arc<Bound>>>,
}

impl Prepared {
    /// What the client calls it.
    pub fn handle(&self) -> PreparedHandle {
        self.handle
    }

    /// Its text or plan.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Its parameters, in the order of binding.
    pub fn parameters(&self) -> Vec<Parameter> {
        let one = |id: &String| Parameter {
            name: id.trim_start_matches('$').to_owned(),
            data_type: self.described.types.get(id).cloned().flatten(),
        };
        self.described.placeholders.ids.iter().map(one).collect()
    }

    /// The schema of its result before parameters are bound; `None` when it returns no rows (`SET`).
    pub fn schema(&self) -> Option<&SchemaRef> {
        self.described.schema.as_ref()
    }

    /// Binds the rows of `batches`, for which `memory` is held; the statement runs once for each. No batches, or
    /// batches without rows and columns, unbind.
    ///
    /// # Errors
    /// `Invalid` when the columns do not match the parameters.
    pub fn bind(&self, batches: Vec<RecordBatch>, memory: UploadMemory) -> Result<(), Error> {
        let nothing = batches.iter().all(|batch| batch.num_rows() == 0 && batch.num_columns() == 0);
        for batch in batches.iter().filter(|_| !nothing) {
            crate::params::columns(&self.described.placeholders, batch)?;
        }
        let bound = (!nothing).then(|| Arc::new(Bound { batches, _memory: memory }));
        // Dropped when the lock is free: memory that is given back may let a query in.
        let _before = std::mem::replace(&mut *self.bound.lock(), bound);
        Ok(())
    }
}

/// The open prepared statements of everybody.
#[derive(Debug)]
pub(crate) struct PreparedStatements {
    open: Expiring<PreparedHandle, Arc<Prepared>>,
    per_session_max: usize,
}

impl PreparedStatements {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            open: Expiring::new(config.prepared_max, config.prepared_ttl, WhenFull::EvictUnused(UNUSED))
                .within(usize::try_from(config.prepared_limit.as_u64()).unwrap_or(usize::MAX)),
            per_session_max: config.prepared_per_session_max,
        }
    }

    /// # Errors
    /// `Exhausted` at the bound of all statements or of those of the session.
    pub(crate) fn open(&self, prepared: Arc<Prepared>) -> Result<(), Error> {
        let session = prepared.session;
        let max = self.per_session_max;
        let own = |other: &Arc<Prepared>| other.session == session && other.principal == prepared.principal;
        // Fewer of all than one may have need no counting.
        if self.open.len() >= max && self.open.count(own) >= max {
            return Err(Error::Exhausted(format!(
                "this session has {max} prepared statements open, which is the limit; close some (engine.prepared_per_session_max)"
            )));
        }
        let bytes = prepared.statement.bytes();
        self.open.insert_weighing(prepared.handle, prepared, bytes).map_err(|_| {
            Error::Exhausted(
                "the server has as many prepared statements as it may; close some (engine.prepared_max, \
                 engine.prepared_limit)"
                    .into(),
            )
        })
    }

    /// The statement of `handle`, when it is the caller's own.
    ///
    /// # Errors
    /// `NotFound`, also for the statement of another.
    pub(crate) fn get(&self, handle: PreparedHandle, principal: &Principal) -> Result<Arc<Prepared>, Error> {
        self.open.get(&handle).filter(|prepared| prepared.principal == *principal).ok_or_else(|| Error::NotFound {
            what: "prepared statement",
            name: handle.0.to_string(),
            hint: "it was closed or has expired; prepare it again",
        })
    }

    pub(crate) fn close(&self, handle: PreparedHandle, principal: &Principal) -> bool {
        self.get(handle, principal).is_ok() && self.open.remove(&handle).is_some()
    }

    /// Closes what the session has open.
    pub(crate) fn close_session(&self, session: &Session) {
        self.open.retain(|prepared| prepared.session != session.id || prepared.principal != session.principal);
    }

    pub(crate) fn sweep(&self) {
        self.open.sweep();
    }
}
