//! `a || b` as a function: an operator is evaluated where it cannot be asked first what it would make.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};
use datafusion::physical_expr::expressions::{self, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, PhysicalExprRef};

use super::Bounded;
use super::sizes::Size;

/// Calls a function where a statement has `||` between texts. That of lists is one already.
#[derive(Debug)]
pub(super) struct Called(Arc<ScalarUDF>);

impl Called {
    pub(super) fn new() -> Self {
        let inner = ScalarUDF::from(Joined { signature: Signature::user_defined(Volatility::Immutable) });
        Self(Arc::new(ScalarUDF::from(Bounded { inner, size: Size::Sum })))
    }
}

impl FunctionRewrite for Called {
    fn name(&self) -> &str {
        "joined_texts"
    }

    fn rewrite(&self, expr: Expr, schema: &DFSchema, _: &ConfigOptions) -> Result<Transformed<Expr>> {
        let Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) = &expr else {
            return Ok(Transformed::no(expr));
        };
        // What does not fit together is told with the operator's own words.
        let types = [left, right].map(|side| side.get_type(schema).ok());
        let [Some(one), Some(other)] = types else { return Ok(Transformed::no(expr)) };
        let is_text = joined_type(&one, &other).is_ok_and(|joined| !joined.is_nested());
        if !is_text {
            return Ok(Transformed::no(expr));
        }
        let args = vec![left.as_ref().clone(), right.as_ref().clone()];
        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&self.0), args))))
    }
}

fn joined_type(left: &DataType, right: &DataType) -> Result<DataType> {
    BinaryTypeCoercer::new(left, &Operator::StringConcat, right).get_result_type()
}

/// # Errors
/// When there are not two.
fn two<T>(sides: impl IntoIterator<Item = T>) -> Result<[T; 2]> {
    let sides: Vec<T> = sides.into_iter().collect();
    sides.try_into().or_else(|_| exec_err!("|| stands between two values"))
}

/// What the operator does.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Joined {
    signature: Signature,
}

impl ScalarUDFImpl for Joined {
    fn name(&self) -> &str {
        "||"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let names: Vec<_> = args.iter().map(|arg| arg.schema_name().to_string()).collect();
        Ok(names.join(" || "))
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        let [left, right] = two(arg_types)?;
        let (left, right) = BinaryTypeCoercer::new(left, &Operator::StringConcat, right).get_input_types()?;
        Ok(vec![left, right])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let [left, right] = two(arg_types)?;
        joined_type(left, right)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<_> = args.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let is_nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, is_nullable)))
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (mut columns, mut sides) = (Vec::<(Field, ArrayRef)>::new(), Vec::<PhysicalExprRef>::new());
        for arg in args.args {
            sides.push(match arg {
                ColumnarValue::Array(array) => {
                    columns.push((Field::new("", array.data_type().clone(), true), array));
                    Arc::new(Column::new("", columns.len() - 1))
                }
                ColumnarValue::Scalar(value) => Arc::new(Literal::new(value)),
            });
        }
        let [left, right] = two(sides)?;
        let (fields, columns): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let options = RecordBatchOptions::new().with_row_count(Some(args.number_rows));
        let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        expressions::BinaryExpr::new(left, Operator::StringConcat, right).evaluate(&batch)
    }
}
