//! Which names there are.

use datafusion::arrow::array::record_batch;

use super::*;
use crate::{Kind, TableConfig};

async fn listed(catalog: &Catalog) -> Vec<String> {
    let names = catalog.list().await.unwrap();
    let show =
        |l: crate::Listed| format!("{}.{}{}", l.schema, l.name, if l.kind == Kind::View { " (view)" } else { "" });
    names.into_iter().map(show).collect()
}

#[tokio::test]
async fn tables_and_schemas_are_found() {
    let f = Fixture::new();
    f.write("t.csv", "a\n1\n").write("Orders.csv", "a\n2\n").write("notes.txt", "x").write("empty.csv", "");
    f.write("many/a.csv", "a\n1\n").write("many/b.csv.gz", gz("a\n2\n").await).write("many/_SUCCESS", "x");
    f.write("hive/k=1/a.csv", "a\n1\n").write("hive/k=2/deep=x/b.csv", "a\n1\n");
    f.write("s/one.csv", "a\n1\n").write("s/two/x.csv", "a\n2\n").write("s/.hidden/x.csv", "a\n2\n");
    f.write("formats/a.csv", "a\n1\n").write("formats/b.json", "{\"a\":2}\n").write("nothing/readme.md", "x");
    let catalog = f.open().await;
    let expected =
        ["formats.a", "formats.b", "public.Orders", "public.hive", "public.many", "public.t", "s.one", "s.two"];
    assert_eq!(listed(&catalog).await, expected);
    assert_eq!(answer(&catalog, "SELECT a FROM s.two").await, ["2"]);
    assert_eq!(answer(&catalog, "SELECT a FROM \"Orders\"").await, ["2"]);
    assert_eq!(answer(&catalog, "SELECT sum(a) FROM many").await, ["3"]);
    assert_eq!(answer(&catalog, "SELECT a FROM formats.b").await, ["2"]);
    let absent = [name("public", "orders"), name("s", "three"), name("nope", "t"), name("public", "../t")];
    assert!(resolve(&catalog, &absent).await.unwrap().is_empty());
    // Folders of one table that disagree are an error of that table alone.
    let (kind, text) = failure(&catalog, "SELECT * FROM hive").await;
    assert_eq!(kind, Some(ErrorKind::Invalid));
    assert!(text.contains("hive/k=2/deep=x/b.csv") || text.contains("k=2/deep=x/b.csv"), "{text}");
}

async fn gz(text: &'static str) -> Vec<u8> {
    super::reading::compressed(text.as_bytes(), crate::Compression::Gzip).await
}

#[tokio::test]
async fn a_root_may_be_a_file_or_a_hive_folder_or_a_url_of_this_machine() {
    let f = Fixture::new();
    f.write("x/one.csv", "a\n1\n").write("sales/y=1/p.csv", "a\n7\n").write("with space/t t.csv", "a\n9\n");
    let path = |rel: &str| f.path(rel).to_str().unwrap().to_owned();
    let data = vec![path("x/one.csv"), path("sales"), format!("file://{}", path("with%20space"))];
    let catalog = Catalog::open(Config { data, ..Config::default() }, Handle::current()).await.unwrap();
    assert_eq!(listed(&catalog).await, ["public.one", "public.sales", "public.t t"]);
    assert_eq!(answer(&catalog, "SELECT a, y FROM sales").await, ["7 1"]);
    assert_eq!(answer(&catalog, "SELECT one.a + \"t t\".a FROM one, \"t t\"").await, ["10"]);
}

#[tokio::test]
async fn all_problems_are_reported_at_once_and_with_both_paths() {
    let mut f = Fixture::new();
    f.write("t.csv", "a\n1\n").write("t/x.parquet", "PAR1").write("u.csv", "a\n1\n");
    f.config.data.push(f.path("missing").to_str().unwrap().to_owned());
    f.config.views.insert("u".into(), "SELECT 1".into());
    let errors = f.try_open().await.unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 3, "{texts:?}");
    assert!(texts.iter().any(|t| t.contains("t.csv") && t.contains("/t hold")), "{texts:?}");
    assert!(errors.iter().any(|e| e.kind() == ErrorKind::NotFound && e.to_string().contains("missing")));
    assert!(texts.iter().any(|t| t.contains("view \"public.u\"")), "{texts:?}");
    // Settings that are wrong by themselves come first, and all of them.
    f.config.views.insert("v".into(), " ".into());
    f.config.tables.insert("w".into(), TableConfig { delimiter: Some('→'), ..TableConfig::default() });
    let texts: Vec<String> = f.try_open().await.unwrap_err().iter().map(ToString::to_string).collect();
    assert!(texts.iter().any(|t| t.starts_with("catalog.views.v: ")), "{texts:?}");
    assert!(texts.iter().any(|t| t.starts_with("catalog.tables.w.delimiter: ")), "{texts:?}");
    assert!(texts.iter().any(|t| t.starts_with("catalog.tables.w.location: ")), "{texts:?}");
}

#[tokio::test]
async fn an_empty_folder_is_an_empty_catalog() {
    let f = Fixture::new();
    let catalog = f.open().await;
    assert!(listed(&catalog).await.is_empty());
}

#[tokio::test]
async fn what_can_not_be_a_table_is_an_error_of_its_name_only() {
    let f = Fixture::new();
    f.write("good.csv", "a\n1\n").write("mixed/k=1/a.csv", "a\n1\n").write("mixed/x/a.csv", "a\n1\n");
    f.write("s/deep/deeper/a.csv", "a\n1\n").write("h/k=1/plain/a.csv", "a\n1\n");
    let catalog = f.open().await;
    assert_eq!(listed(&catalog).await, ["public.good", "public.h", "public.mixed", "s.deep"]);
    assert_eq!(answer(&catalog, "SELECT a FROM good").await, ["1"]);
    for (table, part) in [("mixed", "k=1"), ("s.deep", "nest"), ("h", "plain")] {
        let (kind, text) = failure(&catalog, &format!("SELECT * FROM {table}")).await;
        assert_eq!(kind, Some(ErrorKind::Invalid), "{text}");
        assert!(text.contains(part), "{text}");
    }
    // A name that becomes ambiguous while the server runs.
    f.write("good/x.csv", "a\n1\n");
    let (kind, text) = failure(&catalog, "SELECT * FROM good").await;
    assert_eq!(kind, Some(ErrorKind::Invalid));
    assert!(text.contains("good.csv") && text.contains("/good hold"), "{text}");
    assert_eq!(listed(&catalog).await.len(), 4, "the listing goes on");
}

#[cfg(unix)]
#[tokio::test]
async fn links_out_of_the_root_are_not_followed() {
    let (f, other) = (Fixture::new(), Fixture::new());
    other.write("secret.csv", "a\n1\n");
    f.write("real.csv", "a\n1\n");
    std::os::unix::fs::symlink(other.path("secret.csv"), f.path("out.csv")).unwrap();
    std::os::unix::fs::symlink(other.dir.path(), f.path("folder")).unwrap();
    std::os::unix::fs::symlink(f.path("real.csv"), f.path("inside.csv")).unwrap();
    let catalog = f.open().await;
    assert_eq!(listed(&catalog).await, ["public.inside", "public.real"]);
    assert_eq!(answer(&catalog, "SELECT a FROM inside").await, ["1"]);
}

#[tokio::test]
async fn configured_tables_and_views() {
    let mut f = Fixture::new();
    f.write("t.csv", "a;b\n1;2\n").write("parts/p1.csv", "1,x\n").write("parts/p2.csv", "2,y\n");
    f.write("parts/other.csv", "9,z\n");
    f.parquet("more/m.parquet", &record_batch!(("id", Int32, [5, 6])).unwrap());
    let location = |rel: &str| vec![f.path(rel).to_str().unwrap().to_owned()];
    let column = |name: &str, of: &str| crate::Column { name: name.into(), data_type: of.into() };
    let semicolon = TableConfig { location: location("t.csv"), delimiter: Some(';'), ..TableConfig::default() };
    let parts = TableConfig {
        location: location("parts"),
        files: Some("p*.csv".into()),
        header: Some(false),
        columns: vec![column("id", "BIGINT"), column("name", "VARCHAR"), column("missing", "DATE")],
        ..TableConfig::default()
    };
    let wide = TableConfig {
        location: location("more"),
        columns: vec![column("id", "BIGINT"), column("extra", "DOUBLE")],
        ..TableConfig::default()
    };
    f.config.tables = [("t".into(), semicolon), ("own.parts".into(), parts), ("wide".into(), wide)].into();
    f.config.views.insert("v".into(), "SELECT 1".into());
    f.config.views.insert("own.w".into(), "SELECT 2".into());
    let catalog = f.open().await;
    assert_eq!(answer(&catalog, "SELECT a + b FROM t").await, ["3"]);
    assert_eq!(answer(&catalog, "SELECT * FROM own.parts ORDER BY id").await, ["1 x ", "2 y "]);
    assert_eq!(answer(&catalog, "SELECT id, extra, arrow_typeof(id) FROM wide").await, ["5  Int64", "6  Int64"]);
    let view = resolve(&catalog, &[name("own", "w")]).await.unwrap().remove(&name("own", "w"));
    assert!(matches!(view, Some(Relation::View { sql }) if sql == "SELECT 2"));
    let names = listed(&catalog).await;
    assert!(names.contains(&"own.w (view)".to_owned()) && names.contains(&"own.parts".to_owned()), "{names:?}");
    assert_eq!(names.iter().filter(|name| *name == "public.t").count(), 1);
}

#[tokio::test]
async fn nothing_but_live_snapshots_can_be_read() {
    let f = Fixture::new();
    f.write("t.csv", "a\n1\n");
    let catalog = f.open().await;
    let stores = catalog.object_stores();
    let answers = |url: &str| stores.get_store(&url.parse().unwrap()).is_ok();
    for url in ["file:///", "file:///etc/passwd", "s3://bucket", "snapshot://s1", "snapshot://s999"] {
        assert!(!answers(url), "{url}");
    }
    let ctx = session(&catalog);
    let external = format!("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '{}'", f.path("t.csv").display());
    assert!(ctx.sql(&external).await.is_err());
}
