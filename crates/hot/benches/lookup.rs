//! What it costs to ask the cache: once per segment and scan, so for a thousand segments a thousand times per query.
//!
//! `cargo bench -p updraft-hot --bench lookup`

use std::hint::black_box;
use std::sync::Arc;

use async_trait::async_trait;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use datafusion::arrow::array::{ArrayRef, Int64Array};
use datafusion::arrow::datatypes::DataType;
use datafusion::error::Result;
use tokio::runtime::Runtime;
use updraft_hot::{Cache, ColumnKey, FileKey, Load, SegmentId, Size, When};

/// Columns that a scan reads of a segment.
const COLUMNS: u32 = 10;
/// Bytes that each is said to take.
const BYTES: u64 = 2048;

#[derive(Debug)]
struct Loader;

#[async_trait]
impl Load for Loader {
    async fn sizes(&self, keys: &[ColumnKey]) -> Result<Vec<Size>> {
        Ok(vec![Size { reading: BYTES, kept: BYTES }; keys.len()])
    }

    async fn load(&self, _: &ColumnKey) -> Result<ArrayRef> {
        Ok(Arc::new(Int64Array::from(vec![1, 2, 3])))
    }
}

fn segment(number: u32) -> Vec<ColumnKey> {
    let file =
        FileKey::new(format!("root 0, some/folder/part-{number:05}.parquet, 123456 bytes, 2026-01-01T00:00:00Z"));
    let key = |column| {
        let segment = SegmentId { file: file.clone(), row_group: 0 };
        ColumnKey { segment, column, data_type: DataType::Int64 }
    };
    (0..COLUMNS).map(key).collect()
}

fn filled(runtime: &Runtime, table: &Arc<str>, segments: u32, limit: u64) -> Arc<Cache> {
    let (cache, loader) = (Cache::new(limit), Arc::new(Loader) as Arc<dyn Load>);
    for number in 0..segments {
        let loaded = runtime.block_on(cache.get_or_load(table, &loader, &segment(number), When::AtOnce));
        loaded.expect("it can be read");
    }
    cache
}

fn lookup(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let table: Arc<str> = "public.t".into();
    let mut group = c.benchmark_group("ten columns of a segment");
    for segments in [10, 10_000] {
        let cache = filled(&runtime, &table, segments, u64::MAX);
        // Another snapshot of the same file: its key is equal, and not the same.
        let (there, missing) = (segment(segments / 2), segment(segments));
        group.bench_function(BenchmarkId::new("in memory, of", segments), |b| {
            b.iter(|| black_box(cache.get(&table, black_box(&there))).expect("it is there"));
        });
        group.bench_function(BenchmarkId::new("not in memory, of", segments), |b| {
            b.iter(|| assert!(cache.get(&table, black_box(&missing)).is_none()));
        });
    }
    group.finish();

    // The cache is full, and nothing is asked for twice: the answer is to read the file.
    let segments = 10_000;
    let limit = filled(&runtime, &table, segments, u64::MAX).used();
    let full = filled(&runtime, &table, segments, limit + BYTES * u64::from(COLUMNS));
    let (loader, mut next) = (Arc::new(Loader) as Arc<dyn Load>, segments);
    let mut new = || {
        next += 1;
        segment(next)
    };
    c.bench_function("ten columns that do not fit", |b| {
        let ask = |wanted: Vec<ColumnKey>| runtime.block_on(full.get_or_load(&table, &loader, &wanted, When::AtOnce));
        b.iter_batched(&mut new, |wanted| ask(wanted).expect("it can be read"), BatchSize::SmallInput);
    });
}

criterion_group!(benches, lookup);
criterion_main!(benches);
