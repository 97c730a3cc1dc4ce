//! Functions whose result may be many times as large as what they are given.
//!
//! A function makes its result for a whole batch in one call, which DataFusion 55.2 neither reserves memory for nor can
//! end: `repeat(s, 1000000)` of 8,192 short strings is more than most machines have, before anybody may look. So these
//! functions are asked first what they would make, and refused what is beyond a bound. Folding constants calls them as
//! well, while a statement is planned and holds no memory of its own.

mod operator;
mod sizes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytesize::ByteSize;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{ExprSchema, Result, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::SessionState;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::preimage::PreimageResult;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, Expr, ExpressionPlacement, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, StructFieldMapping,
};

use sizes::{FUNCTIONS, Size};

use crate::hidden::hidden_option;

/// Of a query's memory, what one call of a function may make: several run at once, in each partition.
const SHARE: u64 = 16;
/// A batch of ordinary texts is no larger than this, and a batch gains nothing beyond that, however much memory there is.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 256 << 20;

/// Bytes that one call may make: an extension of the options that a query is planned with, and its functions are given.
#[derive(Debug, Clone, Copy)]
struct Most(u64);

hidden_option!(Most, "updraft_most");

/// Bounds what one call makes in a query that is planned with `options` and may hold `memory` bytes.
pub(crate) fn allow(options: &mut ConfigOptions, memory: u64) {
    options.extensions.insert(Most((memory / SHARE).clamp(LEAST, MOST)));
}

/// Puts bounds on the functions of `state`: what its options allow, and little without.
pub(crate) fn bind(state: &mut SessionState) {
    for (name, size) in FUNCTIONS {
        // Only a function of the same name is replaced, which a session state never refuses.
        if let Some(inner) = state.scalar_functions().get(*name).map(|function| function.as_ref().clone()) {
            let _ = state.register_udf(Arc::new(ScalarUDF::from(Bounded { inner, size: *size })));
        }
    }
    // No state refuses one.
    let _ = state.register_function_rewrite(Arc::new(operator::Called::new()));
}

/// A function that refuses to make more at once than it may.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: ScalarUDF,
    size: Size,
}

impl Bounded {
    fn inner(&self) -> &dyn ScalarUDFImpl {
        self.inner.inner().as_ref()
    }

    /// # Errors
    /// `ResourcesExhausted` when the result would be too large.
    fn check(&self, args: &ScalarFunctionArgs) -> Result<()> {
        let bytes = self.size.bytes(&args.args)?;
        let most = args.config_options.extensions.get::<Most>().map_or(LEAST, |most| most.0);
        if bytes <= most {
            return Ok(());
        }
        let (bytes, most) = (ByteSize(bytes).display().iec(), ByteSize(most).display().iec());
        Err(DataFusionError::ResourcesExhausted(format!(
            "{}() would make {bytes} at once, of {} rows, where at most {most} fit; take fewer rows at a time \
             (SET batch_size = 64), or raise `query_memory_limit` or `engine.memory_limit`",
            self.name(),
            args.number_rows,
        )))
    }

    /// What a function is simplified to may be another of them.
    fn bounded(simplified: Expr) -> Result<Expr> {
        let bound = |expr| {
            Ok(match expr {
                Expr::ScalarFunction(mut call) if !call.func.inner().is::<Self>() => {
                    match FUNCTIONS.iter().find(|(name, _)| *name == call.func.name()) {
                        Some((_, size)) => {
                            call.func =
                                Arc::new(ScalarUDF::from(Self { inner: call.func.as_ref().clone(), size: *size }));
                            Transformed::yes(Expr::ScalarFunction(call))
                        }
                        None => Transformed::no(Expr::ScalarFunction(call)),
                    }
                }
                other => Transformed::no(other),
            })
        };
        simplified.transform_up(bound).data()
    }
}

#[warn(clippy::missing_trait_methods, reason = "all but the call itself is left to the function")]
impl ScalarUDFImpl for Bounded {
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&args)?;
        self.inner().invoke_with_args(args)
    }

    fn simplify(&self, args: Vec<Expr>, info: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(match self.inner().simplify(args, info)? {
            ExprSimplifyResult::Simplified(expr) => ExprSimplifyResult::Simplified(Self::bounded(expr)?),
            unchanged @ ExprSimplifyResult::Original(_) => unchanged,
        })
    }

    fn with_updated_config(&self, config: &ConfigOptions) -> Option<ScalarUDF> {
        let inner = self.inner().with_updated_config(config)?;
        Some(ScalarUDF::from(Self { inner, size: self.size }))
    }

    fn name(&self) -> &str {
        self.inner().name()
    }

    fn aliases(&self) -> &[String] {
        self.inner().aliases()
    }

    #[expect(deprecated, reason = "while DataFusion has it")]
    fn display_name(&self, args: &[Expr]) -> Result<String> {
        self.inner().display_name(args)
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner().schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner().signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner().return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner().return_field_from_args(args)
    }

    #[expect(deprecated, reason = "while DataFusion has it")]
    fn is_nullable(&self, args: &[Expr], schema: &dyn ExprSchema) -> bool {
        self.inner().is_nullable(args, schema)
    }

    fn is_strict(&self) -> bool {
        self.inner().is_strict()
    }

    fn preimage(&self, args: &[Expr], literal: &Expr, info: &SimplifyContext) -> Result<PreimageResult> {
        self.inner().preimage(args, literal, info)
    }

    fn short_circuits(&self) -> bool {
        self.inner().short_circuits()
    }

    fn conditional_arguments<'a>(&self, args: &'a [Expr]) -> Option<(Vec<&'a Expr>, Vec<&'a Expr>)> {
        self.inner().conditional_arguments(args)
    }

    fn evaluate_bounds(&self, inputs: &[&Interval]) -> Result<Interval> {
        self.inner().evaluate_bounds(inputs)
    }

    fn propagate_constraints(&self, interval: &Interval, inputs: &[&Interval]) -> Result<Option<Vec<Interval>>> {
        self.inner().propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner().output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner().preserves_lex_ordering(inputs)
    }

    fn strictly_order_preserving(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.inner().strictly_order_preserving(inputs)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner().coerce_types(arg_types)
    }

    fn struct_field_mapping(&self, literals: &[Option<ScalarValue>]) -> Option<StructFieldMapping> {
        self.inner().struct_field_mapping(literals)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner().documentation()
    }

    fn placement(&self, args: &[ExpressionPlacement]) -> ExpressionPlacement {
        self.inner().placement(args)
    }
}
