//! A client that hides nothing: statuses, headers and messages as they are on the wire.

use std::time::Duration;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{Any, CommandStatementQuery, ProstMessageExt};
use arrow_flight::{Action, FlightData, FlightDescriptor, FlightInfo, IpcMessage, PutResult, Ticket};
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use futures::{Stream, StreamExt, TryStreamExt};
use prost::Message;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::support::{Server, text};

/// One connection, and the headers it sends with each call.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) client: FlightServiceClient<Channel>,
    headers: Vec<(AsciiMetadataKey, String)>,
    timeout: Option<Duration>,
}

/// The whole of a result.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) schema: Schema,
    pub(crate) batches: Vec<RecordBatch>,
}

impl Fetched {
    /// The rows as text, in order.
    pub(crate) fn rows(&self) -> Vec<String> {
        text::rows(&self.batches).into_iter().map(|row| row.join(" ")).collect()
    }
}

impl Wire {
    pub(crate) async fn new(server: &Server) -> Self {
        let client = FlightServiceClient::new(server.channel().await).max_decoding_message_size(usize::MAX);
        Self { client, headers: Vec::new(), timeout: None }
    }

    /// The same connection with one more header.
    pub(crate) fn with(&self, name: &'static str, value: &str) -> Self {
        let mut changed = self.clone();
        changed.headers.push((AsciiMetadataKey::from_static(name), value.to_owned()));
        changed
    }

    /// The same connection with a deadline on each call.
    pub(crate) fn within(&self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in &self.headers {
            request.metadata_mut().insert(name.clone(), value.parse().unwrap());
        }
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        request
    }

    pub(crate) async fn describe(&mut self, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let request = self.request(descriptor);
        Ok(self.client.get_flight_info(request).await?.into_inner())
    }

    pub(crate) async fn info(&mut self, command: &impl ProstMessageExt) -> Result<FlightInfo, Status> {
        self.describe(descriptor(command)).await
    }

    /// FlightInfo of a statement.
    pub(crate) async fn plan(&mut self, sql: &str) -> Result<FlightInfo, Status> {
        self.info(&statement(sql)).await
    }

    pub(crate) async fn schema(&mut self, descriptor: FlightDescriptor) -> Result<Schema, Status> {
        let request = self.request(descriptor);
        let result = self.client.get_schema(request).await?.into_inner();
        Ok(Schema::try_from(IpcMessage(result.schema)).unwrap())
    }

    pub(crate) async fn open(&mut self, ticket: Ticket) -> Result<Streaming<FlightData>, Status> {
        let request = self.request(ticket);
        Ok(self.client.do_get(request).await?.into_inner())
    }

    pub(crate) async fn fetch(&mut self, ticket: Ticket) -> Result<Fetched, Status> {
        collect(self.open(ticket).await?).await
    }

    /// Fetches the one endpoint of `info`.
    pub(crate) async fn redeem(&mut self, info: &FlightInfo) -> Result<Fetched, Status> {
        assert_eq!(info.endpoint.len(), 1);
        self.fetch(ticket(info)).await
    }

    /// A statement from FlightInfo to its last row; what was announced must be what came.
    pub(crate) async fn query(&mut self, sql: &str) -> Result<Fetched, Status> {
        let info = self.plan(sql).await?;
        let fetched = self.redeem(&info).await?;
        assert_eq!(announced(&info), fetched.schema, "{sql}");
        Ok(fetched)
    }

    pub(crate) async fn rows(&mut self, sql: &str) -> Vec<String> {
        self.query(sql).await.unwrap_or_else(|status| panic!("{sql}: {status}")).rows()
    }

    /// The bodies of an action's results.
    pub(crate) async fn action(&mut self, name: &str, body: impl Into<Bytes>) -> Result<Vec<Bytes>, Status> {
        let request = self.request(Action { r#type: name.to_owned(), body: body.into() });
        let results = self.client.do_action(request).await?.into_inner();
        results.map_ok(|result| result.body).try_collect().await
    }

    /// An action of Flight SQL: its request and its result each in an `Any`.
    pub(crate) async fn sql_action<R: Message + Default>(
        &mut self,
        name: &str,
        request: &impl ProstMessageExt,
    ) -> Result<R, Status> {
        let results = self.action(name, request.as_any().encode_to_vec()).await?;
        let any = Any::decode(results.first().cloned().unwrap_or_default()).unwrap();
        Ok(R::decode(any.value).unwrap())
    }

    /// An action of Flight: its request and its result bare.
    pub(crate) async fn flight_action<R: Message + Default>(
        &mut self,
        name: &str,
        request: &impl Message,
    ) -> Result<R, Status> {
        let results = self.action(name, request.encode_to_vec()).await?;
        Ok(R::decode(results[0].clone()).unwrap())
    }

    /// DoPut; the answers, and the headers that came with them.
    pub(crate) async fn put(
        &mut self,
        messages: impl Stream<Item = FlightData> + Send + 'static,
    ) -> Result<(Vec<PutResult>, MetadataMap), Status> {
        let request = self.request(messages);
        let (headers, results, _) = self.client.do_put(request).await?.into_parts();
        Ok((results.try_collect().await?, headers))
    }
}

pub(crate) fn statement(sql: &str) -> CommandStatementQuery {
    CommandStatementQuery { query: sql.to_owned(), transaction_id: None }
}

pub(crate) fn descriptor(command: &impl ProstMessageExt) -> FlightDescriptor {
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

pub(crate) fn ticket(info: &FlightInfo) -> Ticket {
    info.endpoint[0].ticket.clone().unwrap()
}

/// The schema that FlightInfo has.
pub(crate) fn announced(info: &FlightInfo) -> Schema {
    info.clone().try_decode_schema().unwrap()
}

pub(crate) async fn collect(messages: Streaming<FlightData>) -> Result<Fetched, Status> {
    let mut stream = FlightRecordBatchStream::new_from_flight_data(messages.map_err(FlightError::from));
    let mut batches = Vec::new();
    while let Some(batch) = stream.next().await {
        batches.push(batch.map_err(|error| match error {
            FlightError::Tonic(status) => *status,
            other => Status::unknown(other.to_string()),
        })?);
    }
    let schema = stream.schema().map(|schema| schema.as_ref().clone());
    Ok(Fetched { schema: schema.expect("a stream begins with its schema"), batches })
}

/// `code: message` of a status, with ids and sizes left as they are.
pub(crate) fn told(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
