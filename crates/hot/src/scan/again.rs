//! Columns that one plan looks at twice: read from their files once.

use std::sync::Arc;

use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;

use super::source::HotSource;

/// Has scans that look for the most part at columns that another scan of the plan looks at too, load them: the other then
/// finds them in memory, or waits until they are. The last of the rules, as those before it make scans anew.
#[derive(Debug)]
pub struct LoadOnce;

impl PhysicalOptimizerRule for LoadOnce {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let mut scans = Vec::new();
        plan.apply(|node| {
            scans.extend(HotSource::of(node.as_ref()));
            Ok(TreeNodeRecursion::Continue)
        })?;
        // Most plans look at each table once, and are not asked anything more.
        let is_alone = |scan: &HotSource| scans.iter().filter(|other| other.is_of_table(scan)).count() < 2;
        let together = scans.iter().filter(|scan| !is_alone(scan) && !scan.reads_late());
        let together: Vec<HotSource> = together.map(|scan| HotSource::clone(scan)).collect();
        if together.is_empty() {
            return Ok(plan);
        }
        let is_shared = |scan: &HotSource| {
            let of_all = together.iter().filter(|other| other.is_of_table(scan)).flat_map(HotSource::columns);
            let of_all: Vec<usize> = of_all.collect();
            let own = scan.columns();
            // Once is the scan itself.
            let shared = own.iter().filter(|column| of_all.iter().filter(|other| other == column).count() > 1);
            2 * shared.count() >= own.len().max(1)
        };
        let marked = plan.transform_up(|node| {
            Ok(match HotSource::of(node.as_ref()).filter(|scan| !scan.reads_late() && is_shared(scan)) {
                Some(scan) => Transformed::yes(DataSourceExec::from_data_source(scan.asked_again()) as _),
                None => Transformed::no(node),
            })
        });
        marked.data()
    }

    fn name(&self) -> &str {
        "load_once"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
