//! The cache of hot columns holds what a scan reads.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray, record_batch};
use datafusion::arrow::compute::{cast, concat, concat_batches};
use datafusion::arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit};
use datafusion::parquet::basic::Compression;
use updraft_hot::{Cache, ColumnKey, File, PreloadError, Table, When};

use super::*;

const ROOM: u64 = 64 << 20;

/// Numbers that look random, the same in every run.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let step =
        |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    std::iter::successors(Some(seed), step).map(|state| state >> 33)
}

/// A batch with a column of each type that Parquet has, NULLs, NaN, both zeros, few and many strings, short and long.
fn every_type(rows: usize, seed: u64) -> RecordBatch {
    let mut random = numbers(seed);
    let mut ints = |below: u64, nulls: bool| -> ArrayRef {
        let next = |_| {
            let number = random.next().unwrap() % below;
            (!nulls || !random.next().unwrap().is_multiple_of(5)).then_some(number as i64)
        };
        Arc::new((0..rows).map(next).collect::<Int64Array>())
    };
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    let zone = || Some("Europe/Berlin".into());
    let types = [
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt8,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        DataType::Float16,
        DataType::Float32,
        DataType::Boolean,
        DataType::Decimal128(9, 2),
        DataType::Decimal128(38, 4),
        DataType::Decimal256(50, 3),
        DataType::Date32,
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Time64(TimeUnit::Nanosecond),
        DataType::Timestamp(TimeUnit::Second, None),
        DataType::Timestamp(TimeUnit::Microsecond, zone()),
        DataType::Timestamp(TimeUnit::Nanosecond, None),
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
    ];
    for data_type in types {
        for nulls in [false, true] {
            let ints = ints(100, nulls);
            let ints = if data_type == DataType::Date32 || matches!(data_type, DataType::Time32(_)) {
                cast(&ints, &DataType::Int32).unwrap()
            } else {
                ints
            };
            columns.push((format!("{data_type} {nulls}"), cast(&ints, &data_type).unwrap()));
        }
    }
    let few = ints(30, true);
    let few = few.as_primitive::<datafusion::arrow::datatypes::Int64Type>();
    let text = |width: usize| -> ArrayRef {
        Arc::new(few.iter().map(|n| n.map(|n| format!("{n:width$}"))).collect::<StringArray>())
    };
    columns.push(("few, long".to_owned(), text(40)));
    columns.push(("many".to_owned(), cast(&ints(1 << 30, true), &DataType::Utf8).unwrap()));
    columns.push(("bytes".to_owned(), cast(&text(20), &DataType::Binary).unwrap()));
    columns.push(("category".to_owned(), {
        let category = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        cast(&text(3), &category).unwrap()
    }));
    let float = |n: Option<i64>| n.map(|n| [f64::NAN, -f64::NAN, 0.0, -0.0, f64::INFINITY, n as f64][n as usize % 6]);
    columns.push(("float".to_owned(), Arc::new(few.iter().map(float).collect::<Float64Array>())));
    columns.push(("nothing".to_owned(), Arc::new(StringArray::new_null(rows))));
    let lists = few.iter().map(|n| n.map(|n| (0..n % 4).map(|i| (i > 0).then_some(i as i32)).collect::<Vec<_>>()));
    let lists = datafusion::arrow::array::ListArray::from_iter_primitive::<Int32Type, _, _>(lists);
    columns.push(("list".to_owned(), Arc::new(lists)));
    let inner = columns[..2].iter().map(|(name, column)| (name, column.clone(), true));
    let inner = RecordBatch::try_from_iter_with_nullable(inner).unwrap();
    columns.push(("struct".to_owned(), Arc::new(datafusion::arrow::array::StructArray::from(inner))));
    let fields = columns.iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    RecordBatch::try_new(schema, columns.into_iter().map(|(_, column)| column).collect()).unwrap()
}

async fn hot_table(f: &Fixture, cache: &Arc<Cache>, table: &str) -> (Catalog, Table) {
    let catalog = f.open().await.with_hot(cache.clone());
    let snapshot = snapshot(&catalog, table).await.unwrap();
    let hot = snapshot.hot().unwrap();
    (catalog, hot)
}

fn keys(table: &Table, file: &File, group: u32) -> Vec<Option<ColumnKey>> {
    let fields = table.schema.fields().iter().enumerate();
    fields.map(|(at, field)| file.column(group, at, field.data_type())).collect()
}

/// All columns of a table through the cache.
async fn through_cache(cache: &Arc<Cache>, table: &Table) -> RecordBatch {
    let mut batches = Vec::new();
    for file in &table.files {
        for (group, rows) in file.rows.iter().enumerate() {
            let mut columns = Vec::new();
            for (key, field) in keys(table, file, group as u32).into_iter().zip(table.schema.fields()) {
                let Some(key) = key else {
                    columns.push(datafusion::arrow::array::new_null_array(field.data_type(), *rows as usize));
                    continue;
                };
                let keys = [key];
                let size = file.loader.sizes(&keys).await.unwrap()[0];
                let loaded = cache.get_or_load(&table.name, &file.loader, &keys, When::AtOnce).await.unwrap().unwrap();
                assert!(loaded[0].bytes() <= size.reading, "{field}: {} {size:?}", loaded[0].bytes());
                let (values, zone) = (&loaded[0].data, &loaded[0].zone);
                assert_eq!(zone.nulls, values.logical_null_count(), "{field}");
                columns.push(cast(values, field.data_type()).unwrap());
            }
            batches.push(RecordBatch::try_new(table.schema.clone(), columns).unwrap());
        }
    }
    concat_batches(&table.schema, &batches).unwrap()
}

#[tokio::test]
async fn what_is_loaded_is_what_a_scan_reads() {
    let f = Fixture::new();
    for (number, (rows, dictionary, page)) in
        [(3000, true, 1 << 20), (700, false, 500), (1, true, 10)].iter().enumerate()
    {
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(1000))
            .set_dictionary_enabled(*dictionary)
            .set_data_page_row_count_limit(*page)
            .set_dictionary_page_size_limit(2000)
            .set_compression(if *dictionary { Compression::SNAPPY } else { Compression::UNCOMPRESSED })
            .build();
        let batch = every_type(*rows, number as u64);
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        f.write(&format!("t/{number}.parquet"), bytes);
    }
    let cache = Cache::new(ROOM);
    let (_, table) = hot_table(&f, &cache, "t").await;
    let loaded = through_cache(&cache, &table).await;

    let plain = f.open().await;
    let config = SessionConfig::new().with_default_catalog_and_schema(CATALOG, SCHEMA).with_target_partitions(1);
    let ctx = prepared(&plain, session_with(&plain, config), "select * from t").await.unwrap();
    let read = ctx.sql("select * from t").await.unwrap().collect().await.unwrap();
    let read = concat_batches(&table.schema, &read).unwrap();
    assert_eq!(read.num_rows(), 3701);
    for (at, field) in table.schema.fields().iter().enumerate() {
        assert_eq!(loaded.column(at), read.column(at), "{field}");
    }
    assert_eq!(cache.statistics().loading, 0);
}

#[tokio::test]
async fn strings_of_few_values_take_less_than_half() {
    let f = Fixture::new();
    let rows = 100_000_i64;
    let text = |every: i64| -> ArrayRef {
        Arc::new((0..rows).map(|n| Some(format!("value {}", n % every))).collect::<StringArray>())
    };
    let batch =
        RecordBatch::try_from_iter([("category", text(20)), ("region", text(4)), ("city", text(1000))]).unwrap();
    f.write("t.parquet", parquet_bytes(&batch, 50_000));
    let cache = Cache::new(ROOM);
    let (_, table) = hot_table(&f, &cache, "t").await;
    cache.preload(&[table]).await.unwrap();
    let plain = batch.get_array_memory_size() as f64;
    let ratio = cache.used() as f64 / plain;
    assert!(ratio < 0.4, "{ratio}");
}

#[tokio::test]
async fn missing_and_declared_columns_are_as_the_table_has_them() {
    let f = Fixture::new();
    f.parquet("t/1.parquet", &record_batch!(("a", Int64, [1, 2])).unwrap());
    f.parquet("t/2.parquet", &record_batch!(("b", Utf8, ["x"]), ("a", Int64, [3])).unwrap());
    let cache = Cache::new(ROOM);
    let (_, table) = hot_table(&f, &cache, "t").await;
    let loaded = through_cache(&cache, &table).await;
    let expected = "1,2,3";
    let shown = |batch: &RecordBatch, at: usize| {
        let text = cast(batch.column(at), &DataType::Utf8).unwrap();
        text.as_string::<i32>().iter().map(|text| text.unwrap_or("-").to_owned()).collect::<Vec<_>>().join(",")
    };
    assert_eq!((shown(&loaded, 0).as_str(), shown(&loaded, 1).as_str()), (expected, "-,-,x"));

    let mut declared = Fixture::new();
    declared.parquet("files/1.parquet", &record_batch!(("a", Int64, [1, 2])).unwrap());
    let place = declared.path("files").to_str().unwrap().to_owned();
    let column = |name: &str, data_type: &str| crate::Column { name: name.into(), data_type: data_type.into() };
    let config = crate::TableConfig {
        location: vec![place],
        columns: vec![column("a", "TEXT"), column("c", "INT")],
        ..Default::default()
    };
    declared.config = Config { tables: [("d".to_owned(), config)].into(), ..Config::default() };
    let (_, table) = hot_table(&declared, &cache, "d").await;
    let loaded = through_cache(&cache, &table).await;
    assert_eq!(loaded.column(0).data_type(), &DataType::Utf8View);
    assert_eq!((shown(&loaded, 0).as_str(), shown(&loaded, 1).as_str()), ("1,2", "-,-"));
}

#[tokio::test]
async fn a_changed_file_is_loaded_anew_and_the_others_stay() {
    let f = Fixture::new();
    f.parquet("t/1.parquet", &record_batch!(("a", Int64, [1])).unwrap());
    f.parquet("t/2.parquet", &record_batch!(("a", Int64, [2])).unwrap());
    let cache = Cache::new(ROOM);
    let (_, before) = hot_table(&f, &cache, "t").await;
    through_cache(&cache, &before).await;
    f.parquet("t/2.parquet", &record_batch!(("a", Int64, [3])).unwrap());
    let (_, after) = hot_table(&f, &cache, "t").await;
    let key = |table: &Table, file: usize| keys(table, &table.files[file], 0).remove(0).unwrap();
    assert!(cache.peek(&key(&after, 0)).is_some(), "an unchanged file stays hot, in another snapshot too");
    assert!(cache.peek(&key(&after, 1)).is_none());
    let values = through_cache(&cache, &after).await;
    assert_eq!(values.column(0).as_ref(), &Int64Array::from(vec![1, 3]));
    // What was pinned before the change is answered from memory as it was, and is an error when it is not there.
    assert_eq!(through_cache(&cache, &before).await.column(0).as_ref(), &Int64Array::from(vec![1, 2]));
    cache.clear();
    let key = key(&before, 1);
    let gone = cache
        .get_or_load(&before.name, &before.files[1].loader, &[key], When::AtOnce)
        .await
        .expect_err("it was replaced");
    assert_eq!(find(&gone), Some(ErrorKind::Changed), "{gone}");
}

#[tokio::test]
async fn what_was_replaced_makes_room_for_what_took_its_place() {
    let f = Fixture::new();
    let rows = 50_000_i64;
    let write = |version: i64| {
        for file in 0..4 {
            let rows: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(|row| row * version + file)));
            let batch = RecordBatch::try_from_iter([("a", rows)]).unwrap();
            f.write(&format!("t/{file}.parquet"), parquet_bytes(&batch, 10_000));
        }
    };
    write(1);
    // A fifth more than the table takes.
    let cache = Cache::new(4 * rows as u64 * 8 * 6 / 5);
    let catalog = f.open().await.with_hot(cache.clone());
    let hits_and_misses = async |scans: usize| {
        let before = cache.statistics().total;
        for _ in 0..scans {
            answer(&catalog, "SELECT sum(a) FROM t").await;
        }
        let now = cache.statistics().total;
        (now.hits - before.hits, now.misses - before.misses)
    };
    hits_and_misses(3).await;
    assert_eq!(hits_and_misses(30).await, (600, 0), "all of it is hot");
    let old = snapshot(&catalog, "t").await.unwrap().hot().unwrap();
    write(2);
    let new = snapshot(&catalog, "t").await.unwrap().hot().unwrap();
    let hot = |table: &Table| {
        let keys = table.files.iter().flat_map(|file| (0..5).flat_map(|group| keys(table, file, group))).flatten();
        keys.filter(|key| cache.peek(key).is_some()).count()
    };
    assert_eq!((hot(&old), hot(&new)), (20, 0), "who still reads the old files finds them, as long as there is room");
    hits_and_misses(3).await;
    assert_eq!(hits_and_misses(10).await, (200, 0), "the new files are hot");
    assert!(hot(&old) <= 4, "{}", hot(&old));
    // Files that are no more are worth no more either.
    for file in 0..3 {
        std::fs::remove_file(f.path(&format!("t/{file}.parquet"))).unwrap();
    }
    let left = snapshot(&catalog, "t").await.unwrap().hot().unwrap();
    assert_eq!((hot(&left), hot(&new)), (5, 20));
    assert!(cache.reclaim(1) > 0);
    assert_eq!((hot(&left), hot(&new)), (5, 19), "they go first");
}

#[tokio::test]
async fn a_broken_file_is_named_and_the_cache_stays_whole() {
    let f = Fixture::new();
    let rows = concat(&[&Int64Array::from_iter_values(0..5000)]).unwrap();
    let batch = RecordBatch::try_from_iter([("a", rows.clone()), ("b", rows)]).unwrap();
    let mut bytes = parquet_bytes(&batch, 10_000);
    bytes[4..1000].fill(0xff);
    f.write("page.parquet", bytes);
    f.parquet("good.parquet", &batch);
    let cache = Cache::new(ROOM);
    let (_, good) = hot_table(&f, &cache, "good").await;
    through_cache(&cache, &good).await;
    let (_, broken) = hot_table(&f, &cache, "page").await;
    let mut both = keys(&broken, &broken.files[0], 0).into_iter().flatten();
    let (a, b) = (both.next().unwrap(), both.next().unwrap());
    let (table, loader) = (&broken.name, &broken.files[0].loader);
    let used = cache.used();
    for _ in 0..2 {
        let error = cache
            .get_or_load(table, loader, std::slice::from_ref(&a), When::AtOnce)
            .await
            .expect_err("its first page is broken");
        assert_eq!(find(&error), Some(ErrorKind::Corrupt), "{error}");
        assert!(error.to_string().contains("page.parquet"), "{error}");
        assert_eq!(cache.used(), used);
    }
    let fine = cache.get_or_load(table, loader, &[b], When::AtOnce).await.unwrap().unwrap();
    assert_eq!(&fine[0].data, batch.column(1));
}

#[tokio::test]
async fn a_broken_file_is_named_once_however_it_is_read() {
    let f = Fixture::new();
    let rows: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1_000_000));
    let batch = RecordBatch::try_from_iter([("a", rows.clone()), ("b", rows)]).unwrap();
    f.write("broken/1.parquet", parquet_bytes(&batch.slice(0, 1000), 1000));
    let mut bytes = parquet_bytes(&batch, 1_000_000);
    bytes[4..1000].fill(0xff);
    f.write("broken/2.parquet", bytes);
    for room in [None, Some(0), Some(ROOM)] {
        let catalog = f.open().await;
        let catalog = room.into_iter().fold(catalog, |catalog, room| catalog.with_hot(Cache::new(room)));
        for sql in ["SELECT * FROM broken", "SELECT sum(a) FROM broken", "SELECT b FROM broken WHERE a = 999999"] {
            // The second time it is loaded.
            for _ in 0..2 {
                let (kind, text) = failure(&catalog, sql).await;
                assert_eq!(kind, Some(ErrorKind::Corrupt), "{room:?} {sql}: {text}");
                assert_eq!(text.matches("2.parquet").count(), 1, "{room:?} {sql}: {text}");
                assert_eq!(text.matches("public.broken").count(), 1, "{room:?} {sql}: {text}");
            }
        }
        // What is wrong with a query is no fault of a file.
        let (kind, text) = failure(&catalog, "SELECT b / (a - 3) FROM broken WHERE a < 10 LIMIT 5").await;
        assert_eq!(kind, None, "{text}");
    }
}

#[tokio::test]
async fn a_preload_that_cannot_fit_says_what_it_needs() {
    let f = Fixture::new();
    let rows: ArrayRef = Arc::new(Int64Array::from_iter_values(0..100_000));
    let batch = RecordBatch::try_from_iter([("a", rows.clone()), ("b", rows)]).unwrap();
    f.write("a.parquet", parquet_bytes(&batch, 20_000)).write("b.parquet", parquet_bytes(&batch, 20_000));
    let bytes = 2 * 100_000 * 8;
    for (room, fit) in [(bytes, 0), (bytes * 3 / 2, 1), (bytes * 5 / 2, 2)] {
        let cache = Cache::new(room);
        let (_, a) = hot_table(&f, &cache, "a").await;
        let (_, b) = hot_table(&f, &cache, "b").await;
        match cache.preload(&[a.clone(), b.clone()]).await {
            Ok(()) => assert_eq!((fit, cache.statistics().tables["public.b"].columns), (2, 2 * 5)),
            Err(PreloadError::TooLarge { table, needed, available, limit }) => {
                assert_eq!(*table, *["public.a", "public.b"][fit]);
                assert!(needed >= bytes && available <= room && limit == room, "{needed} {available}");
                assert_eq!(cache.used(), 0, "nothing was loaded");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn the_index_of_pages_is_kept_with_the_footer() {
    let f = Fixture::new();
    let rows: ArrayRef = Arc::new(Int64Array::from_iter_values(0..200_000));
    let batch = RecordBatch::try_from_iter([("a", rows.clone()), ("b", rows)]).unwrap();
    f.write("t.parquet", parquet_bytes(&batch, 100_000));
    let catalog = f.open().await.with_hot(Cache::new(ROOM));
    assert_eq!(answer(&catalog, "SELECT max(b) FROM t").await, ["199999"]);
    let footers = || catalog.metadata().footers;
    let before = footers().used_bytes;
    let lookup = async |id: usize| {
        assert_eq!(answer(&catalog, &format!("SELECT b FROM t WHERE a = {id}")).await, [id.to_string()]);
        footers()
    };
    let first = lookup(123_456).await;
    assert!(first.used_bytes > before, "{before} bytes without it: {first:?}");
    let second = lookup(77).await;
    assert_eq!((second.used_bytes, second.misses), (first.used_bytes, first.misses));
}
