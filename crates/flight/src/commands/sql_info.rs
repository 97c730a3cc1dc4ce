//! GetSqlInfo: what this server and its SQL can do, told truthfully and completely. JDBC drivers up to 18.3 fail on any
//! code that is missing, so every code of the protocol is answered; BI tools decide by them which SQL to write.

use std::collections::BTreeMap;

use arrow_flight::sql::metadata::{SqlInfoData, SqlInfoDataBuilder};
use arrow_flight::sql::{CommandGetSqlInfo, SqlInfo, SqlSupportsConvert};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::can_cast_types;
use datafusion::arrow::datatypes::{DataType, IntervalUnit, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::error::ArrowError;
use datafusion::sql::sqlparser::keywords;
use updraft_engine::FunctionNames;

/// What depends on the build and the config of the server. A limit of 0 means there is none, or none is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerFacts {
    /// Version of this server.
    pub(crate) version: String,
    /// Oldest and newest version of Substrait it reads; `None` if it reads none.
    pub(crate) substrait: Option<(String, String)>,
    /// Longest time a statement may run, in milliseconds.
    pub(crate) statement_timeout_ms: i32,
    /// Longest SQL text, in characters.
    pub(crate) statement_length_max: i64,
    /// Most connections at a time.
    pub(crate) connections_max: i64,
}

/// The schema of the answer.
pub(crate) fn schema() -> SchemaRef {
    let schema: &Schema = SqlInfoDataBuilder::schema();
    SchemaRef::new(schema.clone())
}

/// The rows for the codes asked for, all if none is. Codes that do not exist have no row: newer clients ask for more.
pub(crate) fn answer(command: &CommandGetSqlInfo, data: &SqlInfoData) -> Result<RecordBatch, ArrowError> {
    let batch =
        data.record_batch(command.info.iter().copied()).map_err(|error| ArrowError::ComputeError(error.to_string()))?;
    RecordBatch::try_new(schema(), batch.columns().to_vec())
}

/// Sets of enum values go over the wire as the sum of one bit for each.
fn bits(values: &[i32]) -> i32 {
    values.iter().map(|value| 1 << value).sum()
}

/// All that is answered, to be made once.
pub(crate) fn data(facts: &ServerFacts, functions: &FunctionNames) -> Result<SqlInfoData, ArrowError> {
    use SqlInfo::*;
    let mut info = SqlInfoDataBuilder::new();

    info.append(FlightSqlServerName, "Updraft");
    info.append(FlightSqlServerVersion, facts.version.as_str());
    info.append(FlightSqlServerArrowVersion, datafusion::arrow::ARROW_VERSION);
    info.append(FlightSqlServerReadOnly, true);
    info.append(FlightSqlServerSql, true);
    info.append(FlightSqlServerSubstrait, facts.substrait.is_some());
    let (oldest, newest) = facts.substrait.clone().unwrap_or_default();
    info.append(FlightSqlServerSubstraitMinVersion, oldest.as_str());
    info.append(FlightSqlServerSubstraitMaxVersion, newest.as_str());
    // Were transactions announced, every Python client would open one at once.
    info.append(FlightSqlServerTransaction, 0_i32);
    info.append(FlightSqlServerCancel, true);
    info.append(FlightSqlServerBulkIngestion, false);
    info.append(FlightSqlServerIngestTransactionsSupported, false);
    info.append(FlightSqlServerStatementTimeout, facts.statement_timeout_ms);
    info.append(FlightSqlServerTransactionTimeout, 0_i32);

    for no in [SqlDdlCatalog, SqlDdlSchema, SqlDdlTable] {
        info.append(no, false);
    }
    // Unquoted names become lower case. No value stands for "as written", which is what quoted names are: 0 = unknown.
    info.append(SqlIdentifierCase, 3_i32);
    info.append(SqlIdentifierQuoteChar, "\"");
    info.append(SqlQuotedIdentifierCase, 0_i32);
    info.append(SqlAllTablesAreSelectable, true);
    // NULL counts as the greatest value: last when ascending, first when descending.
    info.append(SqlNullOrdering, 0_i32);
    info.append(SqlKeywords, reserved_words());
    info.append(SqlNumericFunctions, functions.numeric.clone());
    info.append(SqlStringFunctions, functions.string.clone());
    info.append(SqlSystemFunctions, functions.system.clone());
    info.append(SqlDatetimeFunctions, functions.datetime.clone());
    info.append(SqlSearchStringEscape, "\\");
    info.append(SqlExtraNameCharacters, "#@$");
    info.append(SqlSupportsColumnAliasing, true);
    info.append(SqlNullPlusNullIsNull, true);
    info.append(SqlSupportsConvert, conversions());
    info.append(SqlSupportsTableCorrelationNames, true);
    // As JDBC means it: an alias may also be the name of another table, so there is no such restriction.
    info.append(SqlSupportsDifferentTableCorrelationNames, false);
    info.append(SqlSupportsExpressionsInOrderBy, true);
    info.append(SqlSupportsOrderByUnrelated, true);
    // Columns that are not selected, alone (0) and beside selected ones (1).
    info.append(SqlSupportedGroupBy, bits(&[0, 1]));
    info.append(SqlSupportsLikeEscapeClause, true);
    info.append(SqlSupportsNonNullableColumns, true);
    // Minimum (0) and core (1) grammar, entry level of SQL-92 (0): as far as reading goes.
    info.append(SqlSupportedGrammar, bits(&[0, 1]));
    info.append(SqlAnsi92SupportedLevel, bits(&[0]));
    info.append(SqlSupportsIntegrityEnhancementFacility, false);
    // The protocol calls this an ordinal, but the JDBC driver and Java servers take it for bits: limited (1), full (2).
    info.append(SqlOuterJoinsSupportLevel, bits(&[1, 2]));
    info.append(SqlSchemaTerm, "schema");
    info.append(SqlProcedureTerm, "procedure");
    info.append(SqlCatalogTerm, "catalog");
    info.append(SqlCatalogAtStart, true);
    // Schemas and catalogs in calls of procedures, definitions of indexes and of privileges: there are none of these.
    info.append(SqlSchemasSupportedActions, 0_i32);
    info.append(SqlCatalogsSupportedActions, 0_i32);
    info.append(SqlSupportedPositionedCommands, 0_i32);
    info.append(SqlSelectForUpdateSupported, false);
    info.append(SqlStoredProceduresSupported, false);
    // Subqueries in comparisons (0), EXISTS (1), IN (2), with ANY and ALL (3).
    info.append(SqlSupportedSubqueries, bits(&[0, 1, 2, 3]));
    info.append(SqlCorrelatedSubqueriesSupported, true);
    // UNION (0) and UNION ALL (1).
    info.append(SqlSupportedUnions, bits(&[0, 1]));

    for unlimited in [
        SqlMaxBinaryLiteralLength,
        SqlMaxCharLiteralLength,
        SqlMaxColumnNameLength,
        SqlMaxColumnsInGroupBy,
        SqlMaxColumnsInIndex,
        SqlMaxColumnsInOrderBy,
        SqlMaxColumnsInSelect,
        SqlMaxColumnsInTable,
        SqlMaxCursorNameLength,
        SqlMaxIndexLength,
        SqlDbSchemaNameLength,
        SqlMaxProcedureNameLength,
        SqlMaxCatalogNameLength,
        SqlMaxRowSize,
        SqlMaxStatements,
        SqlMaxTableNameLength,
        SqlMaxTablesInSelect,
        SqlMaxUsernameLength,
    ] {
        info.append(unlimited, 0_i64);
    }
    info.append(SqlMaxConnections, facts.connections_max);
    info.append(SqlMaxRowSizeIncludesBlobs, true);
    info.append(SqlMaxStatementLength, facts.statement_length_max);

    // No transactions. The protocol has an int32 here, but the JDBC driver casts it to a 64-bit integer.
    info.append(SqlDefaultTransactionIsolation, 0_i64);
    info.append(SqlTransactionsSupported, false);
    info.append(SqlSupportedTransactionsIsolationLevels, bits(&[0]));
    info.append(SqlDataDefinitionCausesTransactionCommit, false);
    info.append(SqlDataDefinitionsInTransactionsIgnored, false);
    // Results are read forward (1), and read-only (1).
    info.append(SqlSupportedResultSetTypes, bits(&[1]));
    info.append(SqlSupportedConcurrenciesForResultSetUnspecified, bits(&[1]));
    info.append(SqlSupportedConcurrenciesForResultSetForwardOnly, bits(&[1]));
    info.append(SqlSupportedConcurrenciesForResultSetScrollSensitive, 0_i32);
    info.append(SqlSupportedConcurrenciesForResultSetScrollInsensitive, 0_i32);
    info.append(SqlBatchUpdatesSupported, false);
    info.append(SqlSavepointsSupported, false);
    info.append(SqlNamedParametersSupported, true);
    info.append(SqlLocatorsUpdateCopy, false);
    info.append(SqlStoredFunctionsUsingCallSyntaxSupported, false);

    info.build().map_err(|error| ArrowError::ComputeError(error.to_string()))
}

/// Words that cannot be names without quotes, in at least one place of a statement.
fn reserved_words() -> Vec<String> {
    let mut words: Vec<String> = [
        keywords::RESERVED_FOR_IDENTIFIER,
        keywords::RESERVED_FOR_TABLE_ALIAS,
        keywords::RESERVED_FOR_COLUMN_ALIAS,
        keywords::RESERVED_FOR_TABLE_FACTOR,
    ]
    .into_iter()
    .flatten()
    .map(|word| format!("{word:?}"))
    .collect();
    words.sort_unstable();
    words.dedup();
    words
}

/// For each SQL type the types it can be cast to, as the engine's casts have it.
fn conversions() -> BTreeMap<i32, Vec<i32>> {
    use SqlSupportsConvert::*;
    let types = [
        (SqlConvertBigint, DataType::Int64),
        (SqlConvertBit, DataType::Boolean),
        (SqlConvertChar, DataType::Utf8View),
        (SqlConvertDate, DataType::Date32),
        (SqlConvertDecimal, DataType::Decimal128(38, 10)),
        (SqlConvertFloat, DataType::Float32),
        (SqlConvertInteger, DataType::Int32),
        (SqlConvertIntervalDayTime, DataType::Interval(IntervalUnit::MonthDayNano)),
        (SqlConvertIntervalYearMonth, DataType::Interval(IntervalUnit::MonthDayNano)),
        (SqlConvertLongvarchar, DataType::Utf8View),
        (SqlConvertNumeric, DataType::Decimal128(38, 10)),
        (SqlConvertReal, DataType::Float32),
        (SqlConvertSmallint, DataType::Int16),
        (SqlConvertTime, DataType::Time64(TimeUnit::Nanosecond)),
        (SqlConvertTimestamp, DataType::Timestamp(TimeUnit::Nanosecond, None)),
        (SqlConvertTinyint, DataType::Int8),
        (SqlConvertVarbinary, DataType::Binary),
        (SqlConvertVarchar, DataType::Utf8View),
    ];
    let to = |from: &DataType| {
        types.iter().filter(|(_, to)| can_cast_types(from, to)).map(|(code, _)| *code as i32).collect()
    };
    types.iter().map(|(code, from)| (*code as i32, to(from))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::array::AsArray;
    use datafusion::arrow::datatypes::{Int32Type, Int64Type, UInt32Type};

    fn made() -> SqlInfoData {
        let facts = ServerFacts {
            version: "0.1.0".to_owned(),
            substrait: Some(("0.1.0".to_owned(), "0.62.0".to_owned())),
            statement_timeout_ms: 1000,
            statement_length_max: 1 << 20,
            connections_max: 100,
        };
        let names = |name: &str| vec![name.to_owned()];
        let functions = FunctionNames {
            numeric: names("abs"),
            string: names("upper"),
            system: names("coalesce"),
            datetime: names("date_trunc"),
        };
        data(&facts, &functions).expect("data")
    }

    fn rows(codes: &[u32]) -> Vec<(u32, i8)> {
        let batch = answer(&CommandGetSqlInfo { info: codes.to_vec() }, &made()).expect("answer");
        let codes = batch.column(0).as_primitive::<UInt32Type>().values();
        codes.iter().copied().zip(batch.column(1).as_union().type_ids().iter().copied()).collect()
    }

    #[test]
    fn every_code_of_the_protocol_has_the_type_clients_expect() {
        let mut expected: Vec<(u32, i8)> = Vec::new();
        let mut of = |kind: i8, codes: &[std::ops::RangeInclusive<u32>]| {
            expected.extend(codes.iter().cloned().flatten().map(|code| (code, kind)));
        };
        of(0, &[0..=2, 6..=7, 504..=504, 513..=514, 529..=531]);
        of(1, &[3..=5, 9..=11, 500..=502, 506..=506, 515..=516, 518..=521, 523..=524, 527..=527, 532..=532]);
        of(1, &[536..=537, 539..=539, 556..=556, 563..=563, 565..=566, 572..=576]);
        of(2, &[541..=555, 557..=562]);
        of(3, &[8..=8, 100..=101, 503..=503, 505..=505, 507..=507, 522..=522, 525..=526, 528..=528, 533..=535]);
        of(3, &[538..=538, 540..=540, 564..=564, 567..=571]);
        of(4, &[508..=512]);
        of(5, &[517..=517]);
        expected.sort_unstable();
        assert_eq!(rows(&[]), expected);
    }

    #[test]
    fn codes_asked_for_and_nothing_for_unknown_ones() {
        assert_eq!(rows(&[8, 10_000, 0]), [(0, 0), (8, 3)]);
        assert_eq!(rows(&[10_000]), []);
    }

    #[test]
    fn schema_is_that_of_the_protocol() {
        let batch = answer(&CommandGetSqlInfo { info: vec![8] }, &made()).expect("answer");
        assert_eq!(batch.schema(), schema());
        let DataType::Union(fields, _) = schema().field(1).data_type().clone() else { panic!("not a union") };
        let children: Vec<_> = fields.iter().map(|(id, field)| (id, field.name().clone())).collect();
        let expected =
            ["string_value", "bool_value", "bigint_value", "int32_bitmask", "string_list", "int32_to_int32_list_map"];
        assert_eq!(children, (0..).zip(expected.map(str::to_owned)).collect::<Vec<_>>());
        assert!(schema().fields().iter().all(|field| !field.is_nullable()));
    }

    #[test]
    fn values_that_clients_act_on() {
        let value = |code: u32| {
            let batch = answer(&CommandGetSqlInfo { info: vec![code] }, &made()).expect("answer");
            batch.column(1).as_union().value(0)
        };
        assert_eq!(value(8).as_primitive::<Int32Type>().value(0), 0, "no transactions");
        assert_eq!(value(562).as_primitive::<Int64Type>().value(0), 0, "isolation level as 64 bits");
        assert!(value(3).as_boolean().value(0) && value(9).as_boolean().value(0));
        assert_eq!(value(504).as_string::<i32>().value(0), "\"");
        let words = |code: u32| {
            let list = value(code).as_list::<i32>().value(0);
            list.as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        };
        for (code, name) in
            [(508, "SELECT"), (508, "WHERE"), (509, "abs"), (510, "upper"), (511, "coalesce"), (512, "date_trunc")]
        {
            assert!(words(code).iter().any(|word| word == name), "{name} in {code}");
        }
        let map = value(517);
        let keys = map.as_map().keys().as_primitive::<Int32Type>().values().to_vec();
        assert_eq!(keys.len(), 18);
    }

    #[test]
    fn text_converts_to_numbers_and_dates_but_dates_not_to_bits() {
        let conversions = conversions();
        let can = |from: SqlSupportsConvert, to: SqlSupportsConvert| conversions[&(from as i32)].contains(&(to as i32));
        assert!(can(SqlSupportsConvert::SqlConvertVarchar, SqlSupportsConvert::SqlConvertBigint));
        assert!(can(SqlSupportsConvert::SqlConvertVarchar, SqlSupportsConvert::SqlConvertDate));
        assert!(!can(SqlSupportsConvert::SqlConvertDate, SqlSupportsConvert::SqlConvertBit));
    }
}
