//! An optimized plan, and what is known of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlan;
use parking_lot::Mutex;

use super::again::Again;
use super::weight_of;
use crate::footprint::{self, ScanSize};
use crate::plan::Versions;

/// An optimized plan with its parameters in it: all that is not known of a query is how it is split and when it runs.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) plan: LogicalPlan,
    pub(crate) schema: SchemaRef,
    pub(crate) size: ScanSize,
    /// Bytes that the plan takes, about.
    pub(crate) weight: usize,
    /// What it reads, if it gives the same rows whenever it runs on the same.
    pub(crate) repeats_on: Option<Arc<Versions>>,
    hash: OnceLock<u64>,
    again: Mutex<Option<Arc<Again>>>,
}

impl Ready {
    /// # Errors
    /// None in practice: what DataFusion says of a plan it cannot walk.
    pub(crate) fn new(plan: LogicalPlan, repeats_on: Option<Arc<Versions>>) -> Result<Self> {
        Ok(Self {
            schema: Arc::clone(plan.schema().inner()),
            size: footprint::scan_size(&plan)?,
            weight: weight_of(&plan),
            plan,
            repeats_on,
            hash: OnceLock::new(),
            again: Mutex::default(),
        })
    }

    /// How it was run before, if that can be done again.
    pub(crate) fn again(&self) -> Option<Arc<Again>> {
        self.again.lock().clone()
    }

    /// Keeps how it is run for the next time.
    pub(crate) fn keep(&self, again: Arc<Again>) {
        *self.again.lock() = Some(again);
    }
}

/// Of the plan alone: equal ones give equal rows on tables of equal versions.
impl Hash for Ready {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let hash = self.hash.get_or_init(|| {
            let mut hasher = DefaultHasher::new();
            self.plan.hash(&mut hasher);
            hasher.finish()
        });
        hash.hash(state);
    }
}

impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || self.plan == other.plan
    }
}

impl Eq for Ready {}
