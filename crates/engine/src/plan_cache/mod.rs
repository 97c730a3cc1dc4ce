//! Plans that are kept for the next time their statement is asked.
//!
//! Whoever asks the same text with the same settings, while its tables are the same, gets the same plan. The files of
//! the tables are looked at for every statement, so a plan is never of yesterday's.
//!
//! | module | its story |
//! |---|---|
//! | `repeatable` | which plans give the same rows whenever they run |
//! | `ready` | an optimized plan, and what is known of it |
//! | `again` | physical plans that may run more than once |

mod again;
mod ready;
mod repeatable;

use std::hash::Hash;
use std::mem::size_of;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use parking_lot::Mutex;
use updraft_auth::Principal;
use updraft_catalog::{Cache, Lookups};

pub(crate) use again::Again;
pub(crate) use ready::Ready;

use crate::config::Config;
use crate::error::Error;
use crate::params;
use crate::plan::{Logical, Statement};
use crate::prepared::Described;
use crate::settings::Settings;
use crate::sql::Placeholders;

/// What an entry takes beside its plans: key, maps, and the physical plan of a few operators. As each weighs at least
/// this, the budget bounds the number of plans too.
const ENTRY_BYTES: usize = 8 << 10;
/// The most bytes of parameters with which a plan is kept: it has them more than once, and nobody weighs it again.
const VALUES_BYTES: usize = 2 << 10;
/// What a node of a logical plan takes beside its expressions and columns.
const NODE_BYTES: usize = 512;
/// What a column of a node's schema takes.
const COLUMN_BYTES: usize = 64;
/// What a physical plan keeps for a file it reads.
const FILE_BYTES: usize = 512;

/// Who asks what. All of it is compared, so that nobody gets what was planned for another.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) statement: Statement,
    pub(crate) settings: Arc<Settings>,
    pub(crate) principal: Principal,
}

/// A statement, planned on its tables as they were.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Not optimized, with placeholders in it.
    pub(crate) logical: Logical,
    pub(crate) placeholders: Placeholders,
    /// Whether its versions say all that it was made of.
    lasts: bool,
    /// Whether it gives the same rows whenever it runs on the same tables.
    repeats: bool,
    /// What it is with the parameters it was last asked with.
    last: Mutex<Option<(Vec<ScalarValue>, Arc<Ready>)>>,
    /// What was told to who prepared it last, and which type stood for those that are not known.
    described: Mutex<Option<(DataType, Arc<Described>)>>,
}

impl Plan {
    pub(crate) fn new(logical: Logical, placeholders: Placeholders) -> Self {
        let lasts = logical.versions.is_some() && repeatable::reads_tables_only(&logical.plan);
        let repeats = lasts && repeatable::is_repeatable(&logical.plan);
        Self { logical, placeholders, lasts, repeats, last: Mutex::default(), described: Mutex::default() }
    }

    /// Ready to run with `values`, if that is how it was last asked.
    pub(crate) fn kept(&self, values: &[ScalarValue]) -> Option<Arc<Ready>> {
        self.last.lock().as_ref().filter(|(last, _)| last == values).map(|(_, ready)| Arc::clone(ready))
    }

    /// Ready to run with `values` for its placeholders, one for each.
    ///
    /// # Errors
    /// What DataFusion says of the plan.
    pub(crate) fn ready(&self, state: &SessionState, values: Vec<ScalarValue>) -> Result<Arc<Ready>, DataFusionError> {
        if let Some(ready) = self.kept(&values) {
            return Ok(ready);
        }
        let bound;
        let plan = match values.is_empty() {
            true => &self.logical.plan,
            false => {
                let values = params::assigned(&self.placeholders, values.clone());
                bound = self.logical.plan.clone().replace_params_with_values(&values)?;
                &bound
            }
        };
        let versions = self.logical.versions.clone().filter(|_| self.repeats);
        let ready = Arc::new(Ready::new(state.optimize(plan)?, versions)?);
        if self.repeats && values.iter().map(ScalarValue::size).sum::<usize>() <= VALUES_BYTES {
            *self.last.lock() = Some((values, Arc::clone(&ready)));
        }
        Ok(ready)
    }

    /// What a client is told that prepares it, if another was told the same before.
    pub(crate) fn described(&self, unknown: &DataType) -> Option<Arc<Described>> {
        let described = self.described.lock();
        described.as_ref().filter(|(told, _)| told == unknown).map(|(_, described)| Arc::clone(described))
    }

    /// What a client is told that prepares it. Parameters without an inferred type count as `unknown` in the schema.
    ///
    /// # Errors
    /// `Invalid` when one parameter is used with two types.
    pub(crate) fn describe(&self, unknown: &DataType) -> Result<Arc<Described>, Error> {
        if let Some(described) = self.described(unknown) {
            return Ok(described);
        }
        let plan = &self.logical.plan;
        let (placeholders, types) = (self.placeholders.clone(), params::types(plan)?);
        let schema = match placeholders.ids.is_empty() {
            true => Arc::clone(plan.schema().inner()),
            false => {
                let nulls = params::nulls(&placeholders, &types, unknown)?;
                Arc::clone(plan.clone().replace_params_with_values(&nulls)?.schema().inner())
            }
        };
        let described = Arc::new(Described { placeholders, types, schema: Some(schema) });
        *self.described.lock() = Some((unknown.clone(), Arc::clone(&described)));
        Ok(described)
    }

    /// Bytes it takes, about: as written, optimized, and as it runs.
    fn weight(&self) -> usize {
        let files = self.logical.files.saturating_mul(FILE_BYTES);
        ENTRY_BYTES.saturating_add(weight_of(&self.logical.plan).saturating_mul(3)).saturating_add(files)
    }
}

/// Bytes that a logical plan takes, about.
pub(crate) fn weight_of(plan: &LogicalPlan) -> usize {
    let mut bytes = 0_usize;
    let counted = plan.apply_with_subqueries(|node| {
        bytes += NODE_BYTES + COLUMN_BYTES * node.schema().fields().len();
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                bytes += size_of::<Expr>();
                if let Expr::Literal(value, _) = part {
                    bytes += value.size();
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    // It does not fail; if it did, the plan would be taken for too large to be kept.
    counted.map_or(usize::MAX, |_| bytes)
}

/// The plans, and how often one was found.
#[derive(Debug)]
pub(crate) struct PlanCache {
    plans: Cache<Arc<Asked>, Arc<Plan>>,
    lookups: Lookups,
}

impl PlanCache {
    pub(crate) fn new(config: &Config) -> Self {
        let budget = usize::try_from(config.plan_cache_limit.as_u64()).unwrap_or(usize::MAX);
        Self { plans: Cache::new(budget), lookups: Lookups::default() }
    }

    /// The plan of `asked`, if there is one and its tables are still what they were: `is_current` finds out.
    pub(crate) async fn get(
        &self,
        asked: &Arc<Asked>,
        is_current: impl AsyncFnOnce(&Plan) -> bool,
    ) -> Option<Arc<Plan>> {
        let plan = match self.plans.get(asked) {
            Some(plan) if is_current(&plan).await => Some(plan),
            _ => None,
        };
        self.lookups.count(plan.is_some());
        plan
    }

    /// Keeps `plan`, in place of what was kept for the same question.
    pub(crate) fn put(&self, asked: &Arc<Asked>, plan: &Arc<Plan>) {
        if plan.lasts {
            self.plans.insert(Arc::clone(asked), Arc::clone(plan), plan.weight());
        }
    }

    /// Bytes that all plans take, about.
    pub(crate) fn bytes(&self) -> usize {
        self.plans.size().1
    }

    /// Lets go of up to `bytes`, those used longest ago first. Returns how many that are.
    pub(crate) fn evict(&self, bytes: usize) -> usize {
        self.plans.evict(bytes)
    }

    pub(crate) fn figures(&self) -> CacheFigures {
        CacheFigures::of(self.plans.size(), &self.lookups)
    }
}

/// What a cache holds, and how often it helped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Entries.
    pub entries: usize,
    /// Bytes they take.
    pub bytes: usize,
    /// How often what was asked for was there.
    pub hits: u64,
    /// How often it was not.
    pub misses: u64,
}

impl CacheFigures {
    /// Of a cache that has so many entries, of so many bytes.
    pub(crate) fn of((entries, bytes): (usize, usize), lookups: &Lookups) -> Self {
        let (hits, misses) = lookups.counts();
        Self { entries, bytes, hits, misses }
    }
}
