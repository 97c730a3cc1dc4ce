//! Bound parameters: rows of an Arrow batch to the values of placeholders.

use std::collections::HashMap;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlan};

use crate::error::Error;
use crate::sql::Placeholders;

/// The type DataFusion inferred for each placeholder id, where it could.
pub(crate) type Types = HashMap<String, Option<DataType>>;

/// The types of the parameters of `plan`: as DataFusion infers them from what they are compared or combined
/// with, and for `CAST($1 AS T)` the type `T`, as PostgreSQL has it.
///
/// # Errors
/// `Invalid` when one parameter is used with two types.
pub(crate) fn types(plan: &LogicalPlan) -> Result<Types, Error> {
    let mut types: Types = plan.get_parameter_types()?;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|expression| {
                let (inner, to) = match expression {
                    Expr::Cast(cast) => (&cast.expr, &cast.field),
                    Expr::TryCast(cast) => (&cast.expr, &cast.field),
                    _ => return Ok(TreeNodeRecursion::Continue),
                };
                if let Expr::Placeholder(placeholder) = inner.as_ref()
                    && let Some(unknown @ None) = types.get_mut(&placeholder.id)
                {
                    *unknown = Some(to.data_type().clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(types)
}

/// The values of row `row` of `batch` for `placeholders`: by column name where both are named, by
/// position otherwise. Values are cast to the inferred type.
///
/// # Errors
/// `Invalid` for a wrong number of columns, a missing name, or a value its type cannot hold.
pub(crate) fn values(
    placeholders: &Placeholders,
    types: &Types,
    batch: &RecordBatch,
    row: usize,
) -> Result<Vec<ScalarValue>, Error> {
    let mut scalars = Vec::with_capacity(placeholders.ids.len());
    for (id, column) in placeholders.ids.iter().zip(columns(placeholders, batch)?) {
        let array = batch.column(column);
        let mut value = ScalarValue::try_from_array(array, row)?;
        if let Some(Some(wanted)) = types.get(id)
            && value.data_type() != *wanted
        {
            value = cast(&value, wanted).map_err(|reason| {
                let shown = id.trim_start_matches('$');
                let given = array.data_type();
                Error::Invalid(format!("parameter {shown} is {given} and does not fit {wanted}: {reason}"))
            })?;
        }
        scalars.push(value);
    }
    Ok(scalars)
}

/// NULLs of `unknown` for the placeholders whose type is not known: enough to derive a schema.
pub(crate) fn nulls(placeholders: &Placeholders, types: &Types, unknown: &DataType) -> Result<ParamValues, Error> {
    let mut scalars = Vec::with_capacity(placeholders.ids.len());
    for id in &placeholders.ids {
        let data_type = types.get(id).cloned().flatten().unwrap_or_else(|| unknown.clone());
        scalars.push(ScalarValue::try_from(&data_type)?);
    }
    Ok(assigned(placeholders, scalars))
}

/// One value for each placeholder, in the form in which DataFusion takes them.
pub(crate) fn assigned(placeholders: &Placeholders, scalars: Vec<ScalarValue>) -> ParamValues {
    let scalars = scalars.into_iter().map(ScalarAndMetadata::from);
    if placeholders.named {
        let names = placeholders.ids.iter().map(|id| id[1..].to_owned());
        ParamValues::Map(names.zip(scalars).collect())
    } else {
        ParamValues::List(scalars.collect())
    }
}

/// Checks that `batch` has a value for every placeholder.
///
/// # Errors
/// `Invalid`, with both numbers or the missing name.
pub(crate) fn columns(placeholders: &Placeholders, batch: &RecordBatch) -> Result<Vec<usize>, Error> {
    let wanted = placeholders.ids.len();
    let given = batch.num_columns();
    if placeholders.named {
        let schema = batch.schema_ref();
        let by_name: Option<Vec<_>> = placeholders
            .ids
            .iter()
            .map(|id| {
                let bare = &id[1..];
                schema.fields().iter().position(|field| field.name().trim_start_matches(['$', ':', '@']) == bare)
            })
            .collect();
        if let Some(columns) = by_name {
            return Ok(columns);
        }
    }
    if given != wanted {
        let names = placeholders.ids.join(", ");
        return Err(Error::Invalid(format!("the statement has {wanted} parameters ({names}), {given} were bound")));
    }
    Ok((0..wanted).collect())
}

fn cast(value: &ScalarValue, wanted: &DataType) -> Result<ScalarValue, String> {
    let options = datafusion::arrow::compute::CastOptions { safe: false, ..Default::default() };
    value.cast_to_with_options(wanted, &options).map_err(|error| error.strip_backtrace())
}
