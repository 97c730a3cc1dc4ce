//! What it takes to put a batch of a result on the wire: numbers, which go as they lie in memory; text, which is kept as views
//! and sent as offsets and bytes; and what a codec adds.
//!
//! `cargo bench -p updraft-flight --bench encode`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use updraft_flight::{WireOptions, encode_for_bench};

/// A batch as a scan of a hot table gives it.
const ROWS: u64 = 65_536;
const MESSAGE_SIZE: usize = 1 << 20;

fn encode(c: &mut Criterion) {
    let spread = || (0..ROWS).map(|row| row.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40);
    let text =
        |make: &dyn Fn(u64) -> String| -> ArrayRef { Arc::new(StringViewArray::from_iter_values(spread().map(make))) };
    let columns: [(&str, ArrayRef); 4] = [
        ("numbers", Arc::new(Int64Array::from_iter_values(spread().map(|number| number as i64)))),
        ("text within its view", text(&|number| format!("name {}", number % 1000))),
        ("text of 20 bytes", text(&|number| format!("a name of {number:010}"))),
        ("text of 100 bytes", text(&|number| format!("{number:0100}"))),
    ];
    let mut group = c.benchmark_group("encode");
    for (name, column) in columns {
        let batch = RecordBatch::try_from_iter([("c", column)]).expect("one column");
        let plain = encode_for_bench(&batch, &WireOptions::default(), MESSAGE_SIZE).expect("it is sent");
        group.throughput(Throughput::Bytes(plain as u64));
        for compression in ["none", "lz4", "zstd"] {
            let options = format!("wire_compression={compression}").parse().expect("options");
            let name = format!("{name}, {compression}");
            group.bench_function(name, |b| b.iter(|| encode_for_bench(black_box(&batch), &options, MESSAGE_SIZE)));
        }
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
