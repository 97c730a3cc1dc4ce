//! Random tables, in memory to some part, and random queries: the answers are those of the files.

use std::sync::Arc;

use arbtest::arbitrary::{Result as Drawn, Unstructured};
use datafusion::arrow::array::{
    ArrayRef, BinaryViewArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int32Array, Int64Array,
    ListArray, RecordBatch, StringViewArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit};
use datafusion::common::ScalarValue;

use super::table::{Table, answer, in_memory, session, write};
use crate::cache::Cache;

const WORDS: [&str; 5] = ["", "a", "delta", "a word longer than twelve bytes", "zeta"];

fn columns() -> Schema {
    Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("i", DataType::Int32, true),
        Field::new("f", DataType::Float64, true),
        Field::new("s", DataType::Utf8View, true),
        Field::new("n", DataType::Utf8View, true),
        Field::new("d", DataType::Date32, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("m", DataType::Decimal128(10, 2), true),
        Field::new("b", DataType::Boolean, true),
        Field::new("x", DataType::BinaryView, true),
        Field::new_list("l", Arc::new(Field::new_list_field(DataType::Int32, true)), true),
    ])
}

fn partitions() -> Schema {
    Schema::new(vec![Field::new("p", DataType::Utf8View, true)])
}

/// `len` rows whose ids begin at `first`, without the columns that `left_out` leaves out.
fn batch(u: &mut Unstructured, first: i64, len: usize, left_out: &[bool]) -> Drawn<RecordBatch> {
    let nulls = u.ratio(2, 3)?;
    let ascending = u.ratio(1, 3)?;
    // Not from `u`: what it draws from would be used up by the rows, and the queries would all be alike.
    let mut state: u64 = u.arbitrary()?;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let draw = |row: usize| {
        let value = if ascending { row as i64 * 10 / len as i64 } else { random(10) as i64 };
        (!nulls || random(8) > 0).then_some(value)
    };
    let draws: Vec<Option<i64>> = (0..len).map(draw).collect();
    let floats = [0.0, -0.0, 1.5, -1.5, f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 3.0];
    let of = |scale: i64| draws.iter().map(move |value| value.map(|value| value * scale));
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values((0..len as i64).map(|row| first + row))),
        Arc::new(of(1).map(|value| value.map(|value| value as i32 - 3)).collect::<Int32Array>()),
        Arc::new(of(1).map(|value| value.map(|value| floats[value as usize])).collect::<Float64Array>()),
        Arc::new(of(1).map(|value| value.map(|value| WORDS[value as usize % 5])).collect::<StringViewArray>()),
        Arc::new(
            of(1)
                .zip(first..)
                .map(|(value, id)| value.map(|value| format!("name {value} of the row {id}")))
                .collect::<StringViewArray>(),
        ),
        Arc::new(of(100).map(|value| value.map(|value| value as i32)).collect::<Date32Array>()),
        Arc::new(of(1_000_000).collect::<TimestampMicrosecondArray>()),
        Arc::new(
            of(25)
                .map(|value| value.map(i128::from))
                .collect::<Decimal128Array>()
                .with_precision_and_scale(10, 2)
                .expect("fits"),
        ),
        Arc::new(of(1).map(|value| value.map(|value| value % 3 == 0)).collect::<BooleanArray>()),
        Arc::new(of(1).map(|value| value.map(|value| vec![value as u8; 3])).collect::<BinaryViewArray>()),
        Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
            of(1).map(|value| value.map(|value| (0..value % 3).map(|at| Some(at as i32)).collect::<Vec<_>>())),
        )),
    ];
    let schema = columns();
    let kept: Vec<usize> = (0..arrays.len()).filter(|at| !left_out[*at]).collect();
    let schema = Arc::new(schema.project(&kept).expect("columns"));
    let arrays = arrays.into_iter().zip(left_out).filter(|(_, out)| !**out).map(|(array, _)| array).collect();
    Ok(RecordBatch::try_new(schema, arrays).expect("a batch"))
}

fn table(u: &mut Unstructured, folder: &std::path::Path) -> Drawn<Table> {
    let (mut files, mut first) = (Vec::new(), 0);
    for number in 0..u.int_in_range(1..=3)? {
        let mut left_out = [false; 11];
        for out in left_out.iter_mut().skip(1) {
            *out = number > 0 && u.ratio(1, 5)?;
        }
        let mut batches = Vec::new();
        for _ in 0..u.int_in_range(1..=4)? {
            let len = *u.choose(&[1, 7, 60, 200])?;
            batches.push(batch(u, first, len, &left_out)?);
            first += len as i64;
        }
        let path = folder.join(format!("{number}.parquet"));
        write(&path, &batches);
        let value = if u.ratio(1, 4)? { None } else { Some(WORDS[u.int_in_range(0..=4)?].to_owned()) };
        files.push((path, vec![ScalarValue::Utf8View(value)]));
    }
    let files: Vec<_> = files.iter().map(|(path, values)| (path.as_path(), values.clone())).collect();
    Ok(Table::new(&columns(), &partitions(), &files))
}

fn predicate(u: &mut Unstructured, depth: usize) -> Drawn<String> {
    let number = u.int_in_range(-4..=7)?;
    let word = WORDS[u.int_in_range(0..=4)?];
    let operator = *u.choose(&["=", "<>", "<", "<=", ">", ">=", "is distinct from", "is not distinct from"])?;
    if depth > 0 && u.ratio(1, 3)? {
        let (left, right) = (predicate(u, depth - 1)?, predicate(u, depth - 1)?);
        let word = *u.choose(&["and", "and", "and", "or"])?;
        return Ok(format!("({left} {word} {right})"));
    }
    Ok(match u.int_in_range(0..=20)? {
        0 => format!("id {operator} {}", u.int_in_range(-10..=700)?),
        1 => format!("i {operator} {number}"),
        2 => format!("f {operator} {number}"),
        3 => format!("f {operator} {}", u.choose(&["'NaN'::double", "0.0", "-0.0", "1e300"])?),
        4 => format!("s {operator} '{word}'"),
        5 => format!("s like '{}%'", &word[..word.len().min(2)]),
        6 => format!("s in ('{word}', 'a', 'none')"),
        7 => format!("s not in ('{word}', 'a')"),
        8 => "s is null".to_owned(),
        9 => "not (s is null)".to_owned(),
        10 => format!("n like '%name {number}%'"),
        11 => format!("d {operator} date '1970-07-20'"),
        12 => format!("ts {operator} timestamp '1970-01-01T00:00:05'"),
        13 => format!("m {operator} {number}.25"),
        14 => (*u.choose(&["b", "not b", "b is null", "b is not true"])?).to_owned(),
        15 => format!("p {operator} '{word}'"),
        16 => format!("i + id {operator} {number} + 100"),
        17 => format!("i <> 0 and 10 / i {operator} {number}"),
        18 => format!("s || p {operator} '{word}a'"),
        19 => format!("coalesce(s, 'gone') {operator} '{word}'"),
        _ => format!("id between {} and {}", u.int_in_range(0..=300)?, u.int_in_range(200..=500)?),
    })
}

/// A query, and whether its rows have one order only.
fn query(u: &mut Unstructured) -> Drawn<(String, bool)> {
    let filter = if u.ratio(4, 5)? { format!("where {}", predicate(u, 2)?) } else { String::new() };
    let by = *u.choose(&["id", "i", "f", "s", "d", "m", "p", "n"])?;
    let direction = *u.choose(&["", "desc", "nulls first", "desc nulls last"])?;
    let rows = u.int_in_range(0..=40)?;
    Ok(match u.int_in_range(0..=8)? {
        0 => (format!("select * from t {filter}"), false),
        1 => (format!("select n, i, s, i as again from t {filter}"), false),
        2 => (format!("select l, x, p from t {filter}"), false),
        3 if filter.is_empty() => ("select min(f), max(f), count(*) from t".to_owned(), false),
        3 => (format!("select count(*), count(s), min(n), max(f), sum(i) from t {filter}"), false),
        4 => (format!("select s, p, count(*), min(d), max(ts) from t {filter} group by s, p"), false),
        5 => (format!("select {by}, id, s from t {filter} order by {by} {direction}, id limit {rows}"), true),
        6 => {
            let keys = "(values (1), (3), (350)) v(k)";
            (
                format!("select t.id, t.s, k from (select * from t {filter}) t join {keys} on t.id = v.k or t.i = v.k"),
                false,
            )
        }
        7 => {
            let both = "t.id = u.id and t.s = u.s";
            (format!("select t.id, u.i, t.s from (select * from t {filter}) t join t u on {both}"), false)
        }
        _ => (format!("select upper(s), id * 2 from t {filter} order by id {direction}"), true),
    })
}

#[test]
fn answers_are_those_of_the_files() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("runtime");
    let test = |u: &mut Unstructured| {
        let folder = tempfile::tempdir().expect("folder");
        let mut table = table(u, folder.path())?;
        table.late = u.ratio(1, 2)?;
        let cache = Cache::new(*u.choose(&[0, 1 << 20, 1 << 30])?);
        let hot = table.with_cache(&cache);
        let (loads, seed) = (u.int_in_range(0..=3)?, u.int_in_range(0..=97)?);
        runtime.block_on(hot.load(|segment, column| (segment as usize * 7 + column * 3 + seed) % 3 < loads));
        let batch_size = *u.choose(&[3, 64, 8192])?;
        let plain = session(runtime.block_on(in_memory(&table)), 1, batch_size);
        let hot = session(Arc::new(hot), u.int_in_range(1..=3)?, batch_size);
        for _ in 0..6 {
            let (sql, ordered) = query(u)?;
            let limit = u.int_in_range(0..=300)?;
            let (expected, got) = runtime.block_on(async { (answer(&plain, &sql).await, answer(&hot, &sql).await) });
            let (mut expected, mut got) = match (expected, got) {
                (Ok(expected), Ok(got)) => (expected, got),
                // Dividing by zero in rows that another predicate leaves out: here they are left out first.
                (Err(_), _) => continue,
                (Ok(_), Err(error)) => panic!("{sql}: {error}"),
            };
            if !ordered {
                expected.sort();
                got.sort();
            }
            assert_eq!(expected, got, "{sql}");
            if !ordered {
                let sql = format!("{sql} limit {limit}");
                let some = runtime.block_on(answer(&hot, &sql)).expect("what was answered without a limit");
                assert_eq!(some.len(), limit.min(expected.len()), "{sql}");
                assert!(some.iter().all(|row| expected.binary_search(row).is_ok()), "{sql}");
            }
        }
        Ok(())
    };
    arbtest::arbtest(test).budget_ms(6000).size_min(4096).size_max(65536);
}
