"""Logging in and TLS, as each Python client does them."""

import base64
import ssl
import time

import adbc_driver_flightsql.dbapi as adbc
import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_flightsql import DatabaseOptions
from pyarrow import flight

import fsql
import harness
import secure
from harness import PASSWORD, USER

pytestmark = pytest.mark.timeout(120)
Status = adbc_driver_manager.AdbcStatusCode
PYARROW = lambda name: pytest.mark.feature("pyarrow.flight", name)  # noqa: E731
ADBC = lambda name: pytest.mark.feature("ADBC (Python)", name)  # noqa: E731


def pyarrow_client(server, certs, **kwargs):
    return flight.FlightClient(server.uri, tls_root_certs=certs.pem("ca"), **kwargs)


def bearer(token):
    return flight.FlightCallOptions(headers=[(b"authorization", b"Bearer " + token.encode())])


def adbc_connect(server, certs, **options):
    options = options if "TLS_SKIP_VERIFY" in options else {"TLS_ROOT_CERTS": certs.pem("ca").decode(), **options}
    kwargs = {DatabaseOptions[name].value if name.isupper() else name: value for name, value in options.items()}
    return adbc.connect(server.uri, db_kwargs=kwargs, autocommit=True)


@PYARROW("tls")
def test_uri_says_tls(secured):
    assert secured.uri.startswith("grpc+tls://127.0.0.1:")


@PYARROW("password")
def test_pyarrow_handshake(secured, certs):
    with pyarrow_client(secured, certs) as client:
        header = client.authenticate_basic_token(USER, PASSWORD)
        assert header[0] == b"authorization" and header[1].startswith(b"Bearer ")
        assert fsql.query(client, "SELECT 1 AS x", flight.FlightCallOptions(headers=[header])).num_rows == 1


@PYARROW("password")
@pytest.mark.parametrize("encode", [base64.b64encode, lambda b: base64.b64encode(b).rstrip(b"=")], ids=["padded", "unpadded"])
def test_basic_on_every_call(secured, certs, encode):
    value = b"Basic " + encode(f"{USER}:{PASSWORD}".encode())
    with pyarrow_client(secured, certs) as client:
        assert fsql.query(client, "SELECT 1 AS x", flight.FlightCallOptions(headers=[(b"authorization", value)])).num_rows == 1


@PYARROW("token")
def test_pyarrow_token(secured, certs):
    with pyarrow_client(secured, certs) as client:
        assert fsql.query(client, "SELECT 1 AS x", bearer(secure.TOKEN)).num_rows == 1


@PYARROW("refused")
@pytest.mark.parametrize("header", ["", "Bearer nonsense", "Bearer " + secure.TOKEN[:-4] + "0000", "Basic AAAA", "Basic " + base64.b64encode(b"ada:wrong").decode(), "Digest x", "Bearer updraft_ci_"])
def test_pyarrow_refused(secured, certs, header):
    options = flight.FlightCallOptions(headers=[(b"authorization", header.encode())] if header else [])
    with pyarrow_client(secured, certs) as client, pytest.raises(flight.FlightUnauthenticatedError):
        fsql.query(client, "SELECT 1", options)


@PYARROW("refused")
def test_one_session_token_does_not_open_the_statement_of_another(secured, certs):
    with pyarrow_client(secured, certs) as client:
        mine = flight.FlightCallOptions(headers=[client.authenticate_basic_token(USER, PASSWORD)])
        prepared = fsql.Prepared(client, "SELECT 1 AS x", mine)
        prepared.options = bearer(secure.TOKEN)
        with pytest.raises((flight.FlightError, pa.ArrowException, KeyError)):
            prepared.fetch()


@PYARROW("tls")
def test_pyarrow_wants_a_trusted_certificate(secured, certs):
    with flight.FlightClient(secured.uri, tls_root_certs=certs.pem("other_ca")) as client, pytest.raises(flight.FlightUnavailableError):
        fsql.query(client, "SELECT 1", bearer(secure.TOKEN))


@PYARROW("tls")
def test_plain_text_to_a_tls_port_is_no_crash(secured):
    with flight.FlightClient(secured.uri.replace("grpc+tls", "grpc+tcp")) as client, pytest.raises(flight.FlightUnavailableError):
        fsql.query(client, "SELECT 1", flight.FlightCallOptions(timeout=10))


@ADBC("password")
def test_adbc_password(secured, certs):
    with adbc_connect(secured, certs, username=USER, password=PASSWORD) as conn, conn.cursor() as cur:
        cur.execute("SELECT count(*) FROM nation")
        assert cur.fetchone() == (25,)


@ADBC("tls")
@ADBC("token")
def test_adbc_token(secured, certs):
    with adbc_connect(secured, certs, AUTHORIZATION_HEADER=f"Bearer {secure.TOKEN}") as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)


@ADBC("tls")
def test_adbc_skip_verify_and_untrusted(secured, certs):
    header = f"Bearer {secure.TOKEN}"
    with adbc_connect(secured, certs, AUTHORIZATION_HEADER=header, TLS_SKIP_VERIFY="true") as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
    with pytest.raises(adbc.Error), adbc_connect(secured, certs, AUTHORIZATION_HEADER=header, TLS_ROOT_CERTS=certs.pem("other_ca").decode()) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")


@ADBC("refused")
@pytest.mark.parametrize("options", [{"username": USER, "password": "wrong"}, {"username": "nobody", "password": "x"}, {"AUTHORIZATION_HEADER": "Bearer wrong"}, {}])
def test_adbc_refused(secured, certs, options):
    with pytest.raises(adbc.Error) as raised, adbc_connect(secured, certs, **options) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
    assert raised.value.status_code == Status.UNAUTHENTICATED


@ADBC("session")
def test_adbc_session_by_login_needs_no_cookie(secured, certs):
    with adbc_connect(secured, certs, username=USER, password=PASSWORD) as conn, conn.cursor() as cur:
        conn.adbc_current_db_schema = "nested"
        cur.execute("SELECT x FROM inner")
        assert cur.fetchall() == [(1,)]


@pytest.fixture(scope="module")
def mutual(folder, certs):
    path = secure.write(harness.WORK / "mutual.toml", tls=certs, mutual="required")
    with harness.serve(folder, config=path, log=harness.WORK / "server-mutual.log") as server:
        yield server


@PYARROW("mtls")
def test_pyarrow_client_certificate(mutual, certs):
    with pyarrow_client(mutual, certs, cert_chain=certs.pem("client"), private_key=certs.pem("client_key")) as client:
        assert fsql.query(client, "SELECT 1 AS x").num_rows == 1
    with pyarrow_client(mutual, certs) as client, pytest.raises((flight.FlightUnavailableError, flight.FlightUnauthenticatedError)):
        fsql.query(client, "SELECT 1")


@ADBC("mtls")
def test_adbc_client_certificate(mutual, certs):
    identity = {"MTLS_CERT_CHAIN": certs.pem("client").decode(), "MTLS_PRIVATE_KEY": certs.pem("client_key").decode()}
    with adbc_connect(mutual, certs, **identity) as conn, conn.cursor() as cur:
        cur.execute("SELECT 1")
        assert cur.fetchone() == (1,)


def served_serial(server):
    from cryptography import x509

    pem = ssl.get_server_certificate((server.host, server.port))
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


@PYARROW("tls")
def test_certificate_is_reloaded(folder, tmp_path):
    certs = secure.Certs(tmp_path / "certs")
    config = secure.write(tmp_path / "c.toml", tls=certs, users=True)
    with harness.serve(folder, config=config, log=tmp_path / "log") as server, pyarrow_client(server, certs) as old:
        fsql.query(old, "SELECT 1", bearer(secure.TOKEN))
        before = served_serial(server)
        # Half-written first: the old one stays in use.
        whole = certs.pem("server")
        certs.server.write_bytes(whole[:100])
        time.sleep(2)
        assert served_serial(server) == before
        serial = certs.renew_server()
        deadline = time.monotonic() + 90
        while served_serial(server) != serial:
            assert time.monotonic() < deadline, "the new certificate is not served"
            time.sleep(0.5)
        fsql.query(old, "SELECT 1", bearer(secure.TOKEN))  # The old connection goes on.


@pytest.mark.parametrize("listen", ["0.0.0.0:0"])
def test_no_open_door_without_tls_and_login(folder, listen):
    result = harness.run("serve", "--data", folder, "--listen", listen, timeout=30)
    assert result.returncode not in (0, None) and "flight.allow_insecure" in result.stderr
