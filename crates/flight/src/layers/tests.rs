//! Calls through all layers: first without a socket, then logins of real clients over one.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{
    Action, ActionType, BasicAuth, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use prost::Message;
use secrecy::SecretString;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};
use tower::{Service, service_fn};
use updraft_auth::{Authenticator, Clock, Config, Identity, Principal, User, hash_password, new_api_token};

use super::{Caller, Deadline, Layered, RequestId, layered};
use crate::commands::handshake::handshake;
use crate::transport::{Connection, Limits, Patience, Stop, bind, serve};

const START: u64 = 1_800_000_000;

struct Login {
    authenticator: Authenticator,
    clock: Clock,
    api_token: String,
}

/// alice/secret, and an API token of principal robot.
fn login() -> Login {
    let hash = Some(SecretString::from(hash_password("secret").unwrap()));
    let (api_token, token_hash) = new_api_token("ci").unwrap();
    let token = updraft_auth::Token { principal: "robot".into(), hash: token_hash, expires_at: None };
    let config = Config {
        users: [("alice".to_owned(), User { password_hash: hash })].into(),
        tokens: [("ci".to_owned(), token)].into(),
        ..Config::default()
    };
    let clock = Clock::manual(START);
    Login { authenticator: Authenticator::with_clock(&config, clock.clone()).unwrap(), clock, api_token }
}

fn open() -> Authenticator {
    Authenticator::new(&Config::default()).unwrap()
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

/// A service that panics on `/x/Panic`, panics in its body on `/x/Stream`, and else says in headers what it was told.
fn echo(request: http::Request<Body>) -> Answer {
    Box::pin(async move {
        let mut response = http::Response::new(Body::empty());
        match request.uri().path() {
            "/x/Panic" => panic!("a bug with hunter2 in it"),
            "/x/Stream" => {
                let frames = stream::iter([Ok(http_body::Frame::data(Bytes::from_static(b"first")))])
                    .chain(stream::once(async { panic!("a bug in the stream") }));
                return Ok(http::Response::new(Body::new(http_body_util::StreamBody::<
                    BoxStream<'static, Result<_, Status>>,
                >::new(frames.boxed()))));
            }
            _ => {}
        }
        let extensions = request.extensions();
        let mut say = |name: &'static str, value: String| {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap());
        };
        say("id", extensions.get::<RequestId>().unwrap().to_string());
        if let Some(Deadline(at)) = extensions.get() {
            say("deadline", at.saturating_duration_since(Instant::now()).as_millis().to_string());
        }
        if let Some(caller) = extensions.get::<Caller>() {
            say("principal", caller.principal.name().to_owned());
            say("session", format!("{:?} {:?}", caller.token_session, caller.cookie));
            say("over", format!("{} {} {:?}", caller.connection, caller.peer, caller.user_agent));
        }
        Ok(response)
    })
}

async fn call(authenticator: &Authenticator, path: &str, headers: &[(&'static str, &[u8])]) -> http::Response<Body> {
    let mut request = http::Request::post(path).body(Body::empty()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    let peer: SocketAddr = "127.0.0.9:9".parse().unwrap();
    request.extensions_mut().insert(Connection { id: 7, peer, certificate: [].into() });
    layered(service_fn(echo), authenticator.clone()).call(request).await.unwrap()
}

fn code(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

fn header<'a>(response: &'a http::Response<Body>, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_call_knows_who_makes_it_and_over_what() {
    let login = login();
    let headers: [(&'static str, &[u8]); 4] = [
        ("authorization", b"Basic YWxpY2U6c2VjcmV0"),
        ("user-agent", b"test/1"),
        ("grpc-timeout", b"20S"),
        ("cookie", b"arrow_flight_session_id=01010101-0101-0101-0101-010101010101"),
    ];
    let response = call(&login.authenticator, "/x/Ok", &headers).await;
    assert_eq!(code(response.headers()), Code::Ok);
    assert_eq!(header(&response, "principal"), "alice");
    assert_eq!(header(&response, "session"), format!("None {:?}", Some([1; 16])));
    assert_eq!(header(&response, "over"), "7 127.0.0.9:9 Some(\"test/1\")");
    let left: u64 = header(&response, "deadline").parse().unwrap();
    assert!((15_000..=20_000).contains(&left), "{left}");
    assert!(!response.headers().contains_key("authorization"));

    let other = call(&login.authenticator, "/x/Ok", &headers).await;
    assert_ne!(header(&response, "id"), header(&other, "id"));
    let lax = call(&open(), "/x/Ok", &[("grpc-timeout", b"soon")]).await;
    assert_eq!((header(&lax, "principal"), header(&lax, "deadline")), ("anonymous", ""));
}

#[tokio::test]
async fn refusals_are_statuses() {
    let login = login();
    let cases: [&[(&'static str, &[u8])]; 9] = [
        &[],
        &[("authorization", b"")],
        &[("authorization", b"Basic")],
        &[("authorization", b"Basic \xff\xfe")],
        &[("authorization", b"Negotiate abc")],
        &[("authorization", b"Basic YWxpY2U6d3Jvbmc=")],
        &[("authorization", b"Bearer stale")],
        &[("authorization", b"Bearer a"), ("authorization", b"Bearer b")],
        &[("auth-token-bin", b"!!")],
    ];
    for headers in cases {
        let response = call(&login.authenticator, "/x/Ok", headers).await;
        assert_eq!(response.status(), http::StatusCode::OK);
        assert_eq!(header(&response, "content-type"), "application/grpc");
        assert_eq!(code(response.headers()), Code::Unauthenticated, "{headers:?}");
        assert!(header(&response, "www-authenticate").contains("Basic"), "{headers:?}");
        assert_eq!(header(&response, "principal"), "", "{headers:?}: the service was not called");
    }
    for _ in 0..6 {
        call(&login.authenticator, "/x/Ok", &[("authorization", b"Basic YWxpY2U6d3Jvbmc=")]).await;
    }
    let response = call(&login.authenticator, "/x/Ok", &[("authorization", b"Basic YWxpY2U6d3Jvbmc=")]).await;
    assert_eq!(code(response.headers()), Code::ResourceExhausted);
    assert!(header(&response, "retry-after").parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn health_checks_need_no_login() {
    let login = login();
    let response = call(&login.authenticator, "/grpc.health.v1.Health/Check", &[]).await;
    assert_eq!(code(response.headers()), Code::Ok);
    for path in ["/grpc.health.v1.HealthX/Check", "/x/grpc.health.v1.Health/", "/", "/x/Handshake"] {
        assert_eq!(code(call(&login.authenticator, path, &[]).await.headers()), Code::Unauthenticated, "{path}");
    }
}

#[tokio::test]
async fn a_token_past_its_middle_is_renewed_in_the_response() {
    let login = login();
    let mut session = [7; 16];
    session[..6].copy_from_slice(&(START * 1000).to_be_bytes()[2..]);
    let token = login.authenticator.issue_token(&Identity::of(Principal::new("alice")), session);
    let value = format!("Bearer {token}");
    let response = call(&login.authenticator, "/x/Ok", &[("authorization", value.as_bytes())]).await;
    assert_eq!(header(&response, "session"), format!("{:?} None", Some(session)));
    assert!(!response.headers().contains_key("authorization"), "too early");
    login.clock.advance(Duration::from_secs(1800));
    let response = call(&login.authenticator, "/x/Ok", &[("authorization", value.as_bytes())]).await;
    let renewed = header(&response, "authorization").to_owned();
    assert!(renewed.starts_with("Bearer ") && renewed != value);
    login.clock.advance(Duration::from_secs(3000));
    let response = call(&login.authenticator, "/x/Ok", &[("authorization", renewed.as_bytes())]).await;
    assert_eq!(header(&response, "session"), format!("{:?} None", Some(session)));
}

#[tokio::test]
async fn a_panic_is_an_internal_error_that_tells_nothing_else() {
    let response = call(&open(), "/x/Panic", &[]).await;
    assert_eq!(code(response.headers()), Code::Internal);
    let text = header(&response, "grpc-message");
    assert!(text.contains("request") && !text.contains("hunter2"), "{text}");

    let response = call(&open(), "/x/Stream", &[]).await;
    assert_eq!(code(response.headers()), Code::Ok);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(code(collected.trailers().unwrap()), Code::Internal);
    assert_eq!(collected.to_bytes(), "first");
}

/// Flight with a login and one action; each call's action type is the caller.
#[derive(Clone)]
struct WhoAmI(Authenticator);

type Results<T> = Result<Response<BoxStream<'static, Result<T, Status>>>, Status>;

#[tonic::async_trait]
impl FlightService for WhoAmI {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;

    async fn handshake(&self, request: Request<Streaming<HandshakeRequest>>) -> Results<HandshakeResponse> {
        handshake(&self.0, request).await
    }

    async fn list_actions(&self, request: Request<Empty>) -> Results<ActionType> {
        let caller = request.extensions().get::<Caller>().unwrap();
        let session = caller.token_session.map_or("no session", |_| "session");
        let action = ActionType { r#type: caller.principal.to_string(), description: session.to_owned() };
        Ok(Response::new(stream::iter([Ok(action)]).boxed()))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Results<FlightInfo> {
        panic!("a bug")
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn do_get(&self, _: Request<Ticket>) -> Results<FlightData> {
        Err(Status::unimplemented(""))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Results<PutResult> {
        Err(Status::unimplemented(""))
    }

    async fn do_action(&self, _: Request<Action>) -> Results<arrow_flight::Result> {
        Err(Status::unimplemented(""))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Results<FlightData> {
        Err(Status::unimplemented(""))
    }
}

async fn client(authenticator: &Authenticator) -> FlightServiceClient<Channel> {
    let listener = bind("127.0.0.1:0".parse().unwrap(), false, true, None).unwrap();
    let address = listener.local_addr().unwrap();
    let service: Layered<_> = layered(FlightServiceServer::new(WhoAmI(authenticator.clone())), authenticator.clone());
    tokio::spawn(serve(listener, None, Limits::default(), Patience(Duration::ZERO), service, Stop::new()));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    FlightServiceClient::new(channel)
}

fn with_headers<T>(body: T, headers: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(body);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// Logs in, and says as whom the token then calls.
async fn logged_in(
    client: &mut FlightServiceClient<Channel>,
    request: Request<impl futures::Stream<Item = HandshakeRequest> + Send + 'static>,
) -> Result<String, Status> {
    let limit = Duration::from_secs(9);
    let response = tokio::time::timeout(limit, client.handshake(request)).await.expect("an answer")?;
    let header = response.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
    let messages: Vec<_> = response.into_inner().collect().await;
    let [Ok(message)] = messages.as_slice() else { panic!("{messages:?}") };
    assert_eq!(header.as_bytes(), [b"Bearer ", message.payload.as_ref()].concat(), "the same token in both places");
    who(client, &[("authorization", &header)]).await
}

async fn who(client: &mut FlightServiceClient<Channel>, headers: &[(&'static str, &str)]) -> Result<String, Status> {
    let mut actions = client.list_actions(with_headers(Empty {}, headers)).await?.into_inner();
    let action = actions.message().await?.unwrap();
    Ok(format!("{}, {}", action.r#type, action.description))
}

fn basic_auth(user: &str, password: &str) -> HandshakeRequest {
    let message = BasicAuth { username: user.to_owned(), password: password.to_owned() };
    HandshakeRequest { protocol_version: 0, payload: message.encode_to_vec().into() }
}

#[tokio::test]
async fn handshakes_of_all_clients_log_in() {
    let login = login();
    let mut client = client(&login.authenticator).await;
    let empty = || stream::iter([HandshakeRequest::default()]);
    let bearer = format!("Bearer {}", login.api_token);
    let headers = [
        // Padded, unpadded (Go), another spelling.
        ("Basic YWxpY2U6c2VjcmV0", "alice, session"),
        ("basic YWxpY2U6c2VjcmV0", "alice, session"),
        (&bearer, "robot, session"),
    ];
    for (value, expected) in headers {
        // JDBC sends one empty message, others none; some never close their side.
        let request = with_headers(empty(), &[("authorization", value)]);
        assert_eq!(logged_in(&mut client, request).await.unwrap(), expected, "{value}");
        let request = with_headers(stream::empty(), &[("authorization", value)]);
        assert_eq!(logged_in(&mut client, request).await.unwrap(), expected, "{value}");
        let request = with_headers(stream::pending(), &[("authorization", value)]);
        assert_eq!(logged_in(&mut client, request).await.unwrap(), expected, "{value}");
    }
    let request = Request::new(stream::iter([basic_auth("alice", "secret")]));
    assert_eq!(logged_in(&mut client, request).await.unwrap(), "alice, session", "in the message");
    let request = Request::new(stream::iter([basic_auth("alice", "secret")]).chain(stream::pending()));
    assert_eq!(logged_in(&mut client, request).await.unwrap(), "alice, session", "and not closed");
}

#[tokio::test]
async fn handshakes_that_are_refused() {
    let login = login();
    let mut client = client(&login.authenticator).await;
    let cases = [
        (HandshakeRequest::default(), "", Code::Unauthenticated),
        (HandshakeRequest::default(), "Basic YWxpY2U6d3Jvbmc=", Code::Unauthenticated),
        (HandshakeRequest::default(), "Bearer stale", Code::Unauthenticated),
        (HandshakeRequest::default(), "nonsense", Code::Unauthenticated),
        (basic_auth("alice", "wrong"), "", Code::Unauthenticated),
        // The header counts, even when the message would do.
        (basic_auth("alice", "secret"), "Bearer stale", Code::Unauthenticated),
        (HandshakeRequest { protocol_version: 0, payload: Bytes::from_static(b"\xff\xff") }, "", Code::InvalidArgument),
    ];
    for (message, header, expected) in cases {
        let headers: &[_] = if header.is_empty() { &[] } else { &[("authorization", header)] };
        let request = with_headers(stream::iter([message]), headers);
        let status = logged_in(&mut client, request).await.unwrap_err();
        assert_eq!(status.code(), expected, "{header}");
    }
}

#[tokio::test]
async fn without_accounts_everyone_logs_in_as_anonymous() {
    let mut client = client(&open()).await;
    let requests = [
        with_headers(stream::iter([HandshakeRequest::default()]), &[]),
        with_headers(stream::iter([basic_auth("any", "body")]), &[]),
        with_headers(stream::iter([HandshakeRequest::default()]), &[("authorization", "Basic YWxpY2U6d3Jvbmc=")]),
    ];
    for request in requests {
        assert_eq!(logged_in(&mut client, request).await.unwrap(), "anonymous, session");
    }
    let request = with_headers(stream::pending::<HandshakeRequest>(), &[]);
    assert_eq!(logged_in(&mut client, request).await.unwrap(), "anonymous, session", "one that sends nothing at all");
    assert_eq!(who(&mut client, &[]).await.unwrap(), "anonymous, no session");
}

#[tokio::test]
async fn every_call_may_carry_its_credential() {
    let login = login();
    let mut client = client(&login.authenticator).await;
    let bearer = format!("Bearer {}", login.api_token);
    assert_eq!(who(&mut client, &[("authorization", "Basic YWxpY2U6c2VjcmV0")]).await.unwrap(), "alice, no session");
    assert_eq!(who(&mut client, &[("authorization", &bearer)]).await.unwrap(), "robot, no session");
    assert_eq!(who(&mut client, &[]).await.unwrap_err().code(), Code::Unauthenticated);
    let mut request = Request::new(Empty {});
    let token = tonic::metadata::MetadataValue::from_bytes(login.api_token.as_bytes());
    request.metadata_mut().insert_bin("auth-token-bin", token);
    let action = client.list_actions(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
    assert_eq!(action.r#type, "robot", "as Flight's older login sends it");
}

#[tokio::test]
async fn the_rust_client_logs_in_and_a_panic_costs_one_call() {
    let login = login();
    let mut inner = client(&login.authenticator).await;
    let mut sql = FlightSqlServiceClient::new_from_inner(inner.clone());
    let token = sql.handshake("alice", "secret").await.unwrap();
    let bearer = format!("Bearer {}", String::from_utf8(token.to_vec()).unwrap());
    for _ in 0..3 {
        let request = with_headers(Criteria::default(), &[("authorization", &bearer)]);
        let status = inner.list_flights(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("quote request"), "{status:?}");
        assert_eq!(who(&mut inner, &[("authorization", &bearer)]).await.unwrap(), "alice, session");
    }
    // A fresh client: this one keeps sending the token it has.
    assert!(FlightSqlServiceClient::new_from_inner(inner).handshake("alice", "wrong").await.is_err());
}
