//! The gRPC trait: each method decodes, asks a command, encodes.
//!
//! Implemented directly and not through arrow-flight's `FlightSqlService`, which leaves no way to answer
//! GetSchema, PollFlightInfo and the actions on sessions (apache/arrow-rs#6346).

use std::sync::Arc;

use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{Any, Command, ProstMessageExt};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse,
    PollInfo, PutResult, Result as ActionResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};

use crate::answer::{Answer, NoMessages};
use crate::call::Call;
use crate::commands::query::Runnable;
use crate::commands::{self, Asked, actions, cancel, handshake, metadata, prepared, query, session, update};
use crate::server::Server;
use crate::status::{answer_failed, not_offered, status};
use crate::wire::{Upload, read_upload, schema_bytes};

/// Flight SQL, as gRPC calls it.
#[derive(Debug, Clone)]
pub(crate) struct FlightSql {
    server: Arc<Server>,
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

impl FlightSql {
    pub(crate) fn new(server: Arc<Server>) -> Self {
        Self { server }
    }

    fn call<T>(&self, request: &Request<T>) -> Result<Call, Status> {
        Call::of(&self.server.engine, &self.server.sealer, request)
    }

    async fn info(&self, call: &Call, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
        let server = &*self.server;
        match commands::of_descriptor(&descriptor)? {
            Asked::Statement(statement) => query::info(server, call, Runnable::Statement(statement), descriptor).await,
            Asked::Prepared(handle) => query::info(server, call, Runnable::Prepared(handle), descriptor).await,
            Asked::Metadata(command) => metadata::info(&command, descriptor.cmd.clone(), descriptor),
            Asked::Planned(_) => Err(Status::invalid_argument("this is a ticket; fetch it with DoGet")),
            Asked::Put(command) => Err(wants_put(&command)),
        }
    }
}

#[tonic::async_trait]
impl FlightService for FlightSql {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = NoMessages;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<ActionResult>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        handshake::handshake(&self.server.authenticator, request).await
    }

    /// Every table, as a flight that its path fetches.
    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        let call = self.call(&request)?;
        let tables = self.server.engine.tables().await.map_err(status)?;
        let columns = self.server.engine.columns(&call.session, &tables, call.deadline).await.map_err(status)?;
        let flights = tables.into_iter().zip(columns).map(move |(table, columns)| {
            let columns = columns.map(|columns| query::announced(&columns, &call.wire));
            let schema = columns.map(|columns| schema_bytes(&columns)).transpose().map_err(answer_failed)?;
            let path = vec![updraft_engine::CATALOG.to_owned(), table.schema, table.name];
            Ok(FlightInfo {
                schema: schema.unwrap_or_default(),
                flight_descriptor: Some(FlightDescriptor::new_path(path)),
                total_records: -1,
                total_bytes: -1,
                ..FlightInfo::default()
            })
        });
        Ok(Response::new(stream::iter(flights.collect::<Vec<_>>()).boxed()))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        let call = self.call(&request)?;
        Ok(Response::new(self.info(&call, request.into_inner()).await?))
    }

    /// A query runs while it is fetched, so its FlightInfo is complete as soon as it is planned: no endpoint could be handed
    /// out earlier, and none is held back until it has finished.
    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let call = self.call(&request)?;
        let info = self.info(&call, request.into_inner()).await?;
        Ok(Response::new(PollInfo {
            info: Some(info),
            flight_descriptor: None,
            progress: Some(1.0),
            expiration_time: None,
        }))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let call = self.call(&request)?;
        let server = &*self.server;
        let schema = match commands::of_descriptor(&request.into_inner())? {
            Asked::Statement(statement) => query::schema(server, &call, Runnable::Statement(statement)).await?,
            Asked::Prepared(handle) => query::schema(server, &call, Runnable::Prepared(handle)).await?,
            Asked::Metadata(command) => metadata::schema(&command),
            Asked::Planned(_) => return Err(Status::invalid_argument("this is a ticket; fetch it with DoGet")),
            Asked::Put(command) => return Err(wants_put(&command)),
        };
        Ok(Response::new(SchemaResult { schema: schema_bytes(&schema).map_err(answer_failed)? }))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let call = self.call(&request)?;
        let server = &*self.server;
        let answer = match commands::of_bytes(&request.into_inner().ticket)? {
            Asked::Planned(sealed) => query::fetch(server, &call, &sealed).await?,
            Asked::Statement(statement) => query::run(server, &call, Runnable::Statement(statement)).await?,
            Asked::Prepared(handle) => query::run(server, &call, Runnable::Prepared(handle)).await?,
            Asked::Metadata(command) => {
                Answer::new(stream::iter(metadata::answer(server, &call, &command).await?.into_iter().map(Ok)))
            }
            Asked::Put(command) => return Err(wants_put(&command)),
        };
        Ok(answer.into_response())
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let call = self.call(&request)?;
        let server = &*self.server;
        let mut messages = request.into_inner();
        let first = messages.try_next().await?.ok_or_else(|| Status::invalid_argument("the upload is empty"))?;
        let descriptor = first.flight_descriptor.clone();
        let descriptor = descriptor.ok_or_else(|| Status::invalid_argument("the first message has no descriptor"))?;
        let mut memory = server.engine.upload_memory(&call.session);
        let hold = |bytes| memory.grow(bytes);
        let result = match commands::of_descriptor(&descriptor)? {
            Asked::Prepared(handle) => {
                let upload = read_upload(first, messages, &server.upload, hold).await?;
                prepared::bind(server, &call, handle, upload, memory)?
            }
            Asked::Put(command) if matches!(*command, Command::CommandStatementIngest(_)) => {
                return Err(not_offered("bulk ingestion is"));
            }
            // It comes without data, and the C++ client waits for the answer before it says that there is no more.
            Asked::Put(command) if matches!(*command, Command::CommandStatementUpdate(_)) => {
                update::update(server, &call, *command, Upload::default(), memory).await?
            }
            Asked::Put(command) => {
                let upload = read_upload(first, messages, &server.upload, hold).await?;
                update::update(server, &call, *command, upload, memory).await?
            }
            _ => return Err(not_offered("uploading to this descriptor is")),
        };
        let mut response = Response::new(stream::once(std::future::ready(Ok(result))).boxed());
        session::offer_cookie(&call, response.metadata_mut())?;
        Ok(response)
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(not_offered("DoExchange is"))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let call = self.call(&request)?;
        let server = &*self.server;
        let Action { r#type: name, body } = request.into_inner();
        // Actions of Flight SQL come wrapped in `Any`, those of Flight bare.
        let answer = match name.as_str() {
            "CreatePreparedStatement" => {
                Some(any(&create_result(prepared::create(server, &call, unwrapped(&name, body)?).await?)))
            }
            "CreatePreparedSubstraitPlan" => {
                Some(any(&create_result(prepared::create_substrait(server, &call, unwrapped(&name, body)?).await?)))
            }
            "ClosePreparedStatement" => {
                prepared::close(server, &call, &unwrapped(&name, body)?);
                None
            }
            "CancelQuery" => Some(any(&cancel::cancel_query(server, &call, &unwrapped(&name, body)?)?.as_any())),
            "CancelFlightInfo" => Some(bare(&cancel::cancel(server, &call, decoded(&name, body)?)?)),
            "RenewFlightEndpoint" => Some(bare(&cancel::renew(server, &call, decoded(&name, body)?)?)),
            "SetSessionOptions" => Some(bare(&session::set(server, &call, decoded(&name, body)?))),
            "GetSessionOptions" => Some(bare(&session::get(server, &call))),
            "CloseSession" => Some(bare(&session::close(server, &call))),
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => {
                return Err(not_offered("transactions are"));
            }
            other => return Err(not_offered(&format!("action {other:?} is"))),
        };
        let answers = answer.into_iter().map(|body| Ok(ActionResult { body }));
        let mut response = Response::new(stream::iter(answers.collect::<Vec<_>>()).boxed());
        if name == "SetSessionOptions" || name == "CreatePreparedStatement" {
            session::offer_cookie(&call, response.metadata_mut())?;
        }
        Ok(response)
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(stream::iter(actions::list().into_iter().map(Ok)).boxed()))
    }
}

fn wants_put(command: &Command) -> Status {
    let name = command.type_url().rsplit('.').next().unwrap_or_default();
    Status::invalid_argument(format!("{name} goes with DoPut"))
}

/// A message of Flight SQL inside its `Any`.
fn unwrapped<M: ProstMessageExt + Default>(action: &str, body: Bytes) -> Result<M, Status> {
    let bad = |what: String| Status::invalid_argument(format!("the request of {action} cannot be decoded: {what}"));
    let any = Any::decode(body).map_err(|error| bad(error.to_string()))?;
    let message = any.unpack::<M>().map_err(|error| bad(error.to_string()))?;
    message.ok_or_else(|| bad(format!("it holds {}", any.type_url)))
}

fn decoded<M: Message + Default>(action: &str, body: Bytes) -> Result<M, Status> {
    M::decode(body)
        .map_err(|error| Status::invalid_argument(format!("the request of {action} cannot be decoded: {error}")))
}

/// The result of creating a prepared statement, under the type name that clients unpack.
fn create_result(result: crate::messages::CreatePreparedStatementResult) -> Any {
    Any {
        type_url: "type.googleapis.com/arrow.flight.protocol.sql.ActionCreatePreparedStatementResult".to_owned(),
        value: result.encode_to_vec().into(),
    }
}

fn any(any: &Any) -> Bytes {
    any.encode_to_vec().into()
}

fn bare(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}
