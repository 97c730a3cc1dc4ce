//! Statements that make little give what stock DataFusion gives, and those that make too much are refused before they do.

use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::error::DataFusionError;
use datafusion::execution::SessionStateBuilder;
use datafusion::prelude::SessionContext;

use super::*;

/// 500 rows: a number and two texts, some of them NULL.
const T: &str = "CREATE TABLE t AS SELECT i, CASE WHEN i % 7 <> 0 THEN 'a' || i END s, repeat('xa', i % 100) AS long \
                 FROM generate_series(1, 500) g(i)";

/// With `most` bytes for each call; unbounded without.
async fn context(most: Option<u64>) -> SessionContext {
    let mut state = SessionStateBuilder::new().with_default_features().build();
    if let Some(most) = most {
        state.config_mut().options_mut().extensions.insert(Most(most));
        bind(&mut state);
    }
    let context = SessionContext::new_with_state(state);
    context.sql(T).await.expect("a plan").collect().await.expect("a table");
    context
}

async fn answer(context: &SessionContext, sql: &str) -> Result<String> {
    let batches = context.sql(sql).await?.collect().await?;
    Ok(pretty_format_batches(&batches)?.to_string())
}

#[tokio::test]
async fn what_is_small_is_as_it_was() {
    let (bounded, stock) = (context(Some(1 << 20)).await, context(None).await);
    for columns in [
        "repeat(s, 3), repeat(s, i % 3 - 1), repeat('', 1000000000), repeat(NULL, 2)",
        "lpad(s, 8), rpad(s, i % 9, 'ä'), lpad(s, -1, 'x'), rpad(s, NULL)",
        "replace(s, 'a', long), replace(long, '', s), replace(long, 'x', NULL)",
        "regexp_replace(long, 'x(a)', '\\1_\\1', 'g'), regexp_replace(s, '[0-9]', 'n')",
        "concat(s, 'b', 'c', NULL, i), concat_ws('-', s, 'x', 'y', long), concat_ws('', s, long)",
        "s || '-' || i, i || long, long || NULL, 'a' || 'b', s || s || long, [i] || [2], i || [3], s || CAST(s AS BYTEA)",
        "count(DISTINCT s || 'x') OVER (PARTITION BY s || long), arrow_typeof(s || 'a'), arrow_typeof(s || i)",
        "range(i % 20), range(i % 5, 20, 3), range(20, i % 5, -2), range(0, i, 0 - i), range(NULL)",
        "range(DATE '2026-01-01', DATE '2026-03-01', INTERVAL '1 week')",
        "generate_series(TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-02', INTERVAL '6 hours')",
        "array_repeat(s, 3), array_repeat([i, 2], i % 3), list_repeat(long, NULL), array_resize([1, 2], 5, 7)",
        "make_array(i, i + 1), array_concat([i], [2, 3]), [s, long]",
    ] {
        let sql = format!("SELECT {columns} FROM t ORDER BY i LIMIT 200");
        let want = answer(&stock, &sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(answer(&bounded, &sql).await.unwrap_or_else(|error| panic!("{sql}: {error}")), want, "{sql}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused_before_it_is_made() {
    let context = context(Some(1 << 20)).await;
    for sql in [
        "SELECT length(repeat('x', 1000000000))",
        "SELECT repeat(s, 100000) FROM t",
        "SELECT repeat(s, 9223372036854775807) FROM t",
        "SELECT lpad(s, 1000000) FROM t",
        "SELECT rpad('x', i * 1000000, 'ä') FROM t",
        "SELECT replace(long, 'a', repeat('b', 5000)) FROM t",
        "SELECT replace(long, '', repeat('b', 5000)) FROM t",
        "SELECT regexp_replace(long, '.', repeat('b', 5000), 'g') FROM t",
        "SELECT regexp_replace(repeat(s, 300), '(.*)', '\\1\\1\\1\\1', 'g') FROM t",
        "SELECT concat(r, r, r, r, r, r, r, r) FROM (SELECT repeat(long, 10) r FROM t)",
        "SELECT concat_ws('', r, r, r, r, r, r, r, r) FROM (SELECT repeat(long, 10) r FROM t)",
        "SELECT r || r || r || r || r || r || r || r FROM (SELECT repeat(long, 10) r FROM t)",
        "WITH a AS (SELECT s || long AS t FROM t), b AS (SELECT t || t || t AS t FROM a), c AS (SELECT t || t || t AS t FROM b), \
         d AS (SELECT t || t || t AS t FROM c) SELECT max(t || t || t) FROM d",
        "SELECT make_array(r, r, r, r, r, r, r, r) FROM (SELECT repeat(long, 10) r FROM t)",
        "SELECT unnest(range(0, 1000000000))",
        "SELECT range(0, i * 1000) FROM t",
        "SELECT range(0, -9223372036854775807, -1)",
        "SELECT generate_series(DATE '0001-01-01', DATE '9999-12-31', INTERVAL '1 day') FROM t",
        "SELECT range(TIMESTAMP '2026-01-01', TIMESTAMP '2026-01-02', INTERVAL '1 nanosecond')",
        "SELECT array_repeat(i, 1000000) FROM t",
        "SELECT array_resize([i], 1000000, 0) FROM t",
    ] {
        let error = answer(&context, sql).await.err().unwrap_or_else(|| panic!("{sql} was not refused"));
        assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{sql}: {error}");
    }
}

#[tokio::test]
async fn the_error_says_how_much_and_what_helps() {
    let context = context(Some(1 << 20)).await;
    let Err(error) = answer(&context, "SELECT repeat('x', 1000000000) FROM t").await else { panic!("1 GB was made") };
    let text = error.find_root().to_string();
    assert!(text.contains("repeat() would make 953.7 MiB at once") && text.contains("at most 1.0 MiB"), "{text}");
    assert!(text.contains("SET batch_size") && text.contains("engine.memory_limit"), "{text}");
}
