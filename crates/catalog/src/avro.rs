//! The schema of an Avro file, from its header.

use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::Result as DfResult;
use datafusion_datasource_avro::read_avro_schema_from_reader;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore};

/// The columns of an Avro object container. Its header has no fixed size: more is read until it is whole.
pub(crate) async fn schema(store: &Arc<dyn ObjectStore>, path: &Path) -> DfResult<SchemaRef> {
    let mut limit = 64 * 1024_u64;
    loop {
        let options = GetOptions { range: Some((0..limit).into()), ..GetOptions::default() };
        let got = store.get_opts(path, options).await?;
        let size = got.meta.size;
        let bytes = got.bytes().await?;
        match read_avro_schema_from_reader(&mut bytes.as_ref()) {
            Ok(schema) => return Ok(Arc::new(schema)),
            Err(e) if limit >= size => return Err(e),
            Err(_) => limit = limit.saturating_mul(8),
        }
    }
}
