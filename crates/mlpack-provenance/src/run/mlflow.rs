//! MLflow's sqlite tracking store (MLflow 2 and 3; read with the schema of 3.17, alembic `dc11669786a5`), read-only.
//!
//! The database is untrusted: it is opened immutable, without views and triggers, values and row counts are bounded, and
//! a query that runs too long is interrupted.

use super::curve;
use super::record::LinkedModel;
use super::store::{Contents, LoggedDataset, Runs, encode_byte};
use crate::Error;
use mlpack_fs::Operation;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, Row};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest value that SQLite may hand over, in bytes.
const MAX_VALUE_LEN: i32 = 1 << 20;
/// Longest value that goes into a record, in bytes; MLflow's own limit for a parameter is 8000 characters.
const MAX_TEXT_LEN: usize = 64 << 10;
/// Most parameters, metrics, tags, datasets or models of a run.
const MAX_ROWS: usize = 4096;
/// Most values of all metrics.
const MAX_POINTS: usize = 2_000_000;
/// Most runs looked at for a suggestion.
const MAX_LISTED_RUNS: usize = 1000;
/// Steps of SQLite's virtual machine between two looks at the budget, and how many looks there are.
const STEPS_PER_LOOK: i32 = 1_000_000;
const MAX_LOOKS: u32 = 5_000;

/// The columns that are read of each table that must be there.
const REQUIRED: [(&str, &[&str]); 5] = [
    ("experiments", &["experiment_id", "name"]),
    ("runs", &["run_uuid", "name", "status", "start_time", "end_time", "lifecycle_stage", "experiment_id"]),
    ("params", &["key", "value", "run_uuid"]),
    ("latest_metrics", &["key", "value", "is_nan", "run_uuid"]),
    ("tags", &["key", "value", "run_uuid"]),
];
const METRICS: &[&str] = &["key", "value", "step", "run_uuid"];
const DATASETS: &[&str] = &["dataset_uuid", "name", "digest", "dataset_source"];
const INPUTS: &[&str] = &["input_uuid", "source_type", "source_id", "destination_type", "destination_id"];
const INPUT_TAGS: &[&str] = &["input_uuid", "name", "value"];
const LOGGED_MODELS: &[&str] = &["model_id", "name", "source_run_id"];
const ARTIFACTS: &[&str] = &["artifact_uri", "run_uuid"];
const MODEL_VERSIONS: &[&str] = &["name", "version", "run_id"];

/// An open tracking store.
pub(crate) struct MlflowStore {
    path: PathBuf,
    db: Connection,
}

impl MlflowStore {
    pub fn open(path: &Path) -> Result<MlflowStore, Error> {
        // SQLite's own message for a missing file names neither the file nor the reason.
        std::fs::File::open(path).map_err(|e| mlpack_fs::Error::io(Operation::Open, path, e))?;
        for suffix in ["-wal", "-journal"] {
            let mut journal = path.as_os_str().to_owned();
            journal.push(suffix);
            let journal = PathBuf::from(journal);
            if journal.metadata().is_ok_and(|m| m.len() > 0) {
                return Err(Error::UnfinishedStore { path: path.to_owned(), journal });
            }
        }
        let error = |source| Error::Sqlite { path: path.to_owned(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(immutable_uri(path), flags).map_err(error)?;
        db.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_LEN).map_err(error)?;
        for (option, on) in [
            (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
            (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
            (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        ] {
            db.set_db_config(option, on).map_err(error)?;
        }
        let mut looks = 0;
        let out_of_budget = move || {
            looks += 1;
            looks > MAX_LOOKS
        };
        db.progress_handler(STEPS_PER_LOOK, Some(out_of_budget)).map_err(error)?;
        let store = MlflowStore { path: path.to_owned(), db };
        for (table, columns) in REQUIRED {
            store.require(table, columns)?;
        }
        Ok(store)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What this store says about a run; `None` when it does not have it.
    pub fn read(&self, run_id: &str) -> Result<Option<Contents>, Error> {
        let found = self.rows(
            "SELECT r.name, r.status, r.lifecycle_stage, r.start_time, r.end_time, e.name FROM runs r \
             LEFT JOIN experiments e ON e.experiment_id = r.experiment_id WHERE r.run_uuid = ?1",
            run_id,
            "runs of one id",
            |row| Ok([text(row, 0)?, text(row, 1)?, text(row, 2)?, text(row, 3)?, text(row, 4)?, text(row, 5)?]),
        )?;
        let Some([name, status, lifecycle, started_ms, ended_ms, experiment]) = found.into_iter().next() else {
            return Ok(None);
        };
        Ok(Some(Contents {
            experiment,
            name,
            status,
            lifecycle,
            started_ms,
            ended_ms,
            params: self.table("SELECT key, value FROM params WHERE run_uuid = ?1", run_id, "parameters")?,
            metrics: self.metrics(run_id)?,
            tags: self.table("SELECT key, value FROM tags WHERE run_uuid = ?1", run_id, "tags")?,
            logged: self.logged(run_id)?,
            datasets: self.datasets(run_id)?,
            models: self.models(run_id)?,
            artifacts: self.artifacts(run_id)?,
        }))
    }

    /// Where the run's artifacts are, when that is a folder here: as logged, or relative to the database.
    fn artifacts(&self, run_id: &str) -> Result<Option<PathBuf>, Error> {
        if !self.has("runs", ARTIFACTS)? {
            return Ok(None);
        }
        let uris = self
            .rows("SELECT artifact_uri FROM runs WHERE run_uuid = ?1", run_id, "runs of one id", |row| text(row, 0))?;
        let Some(uri) = uris.into_iter().flatten().next() else { return Ok(None) };
        let place = Path::new(uri.strip_prefix("file://").unwrap_or(&uri)).to_owned();
        let beside = self.path.parent().unwrap_or(Path::new("")).join(&place);
        Ok([beside, place].into_iter().find(|path| path.is_dir()))
    }

    /// Every logged value by metric, in the order of steps.
    fn logged(&self, run_id: &str) -> Result<curve::Logged, Error> {
        let mut logged = curve::Logged::new();
        if !self.has("metrics", METRICS)? {
            return Ok(logged);
        }
        // Stores of early versions have neither column.
        let or = |column: &'static str, other: &'static str| -> Result<&'static str, Error> {
            Ok(if self.has("metrics", std::slice::from_ref(&column))? { column } else { other })
        };
        let (is_nan, timestamp) = (or("is_nan", "0")?, or("timestamp", "NULL")?);
        let sql = format!(
            "SELECT key, step, value, {is_nan} FROM metrics WHERE run_uuid = ?1 ORDER BY key, step, {timestamp}, value"
        );
        let points = self.bounded_rows(&sql, run_id, "values of metrics", MAX_POINTS, |row| {
            let value = match row.get::<_, bool>(3)? {
                true => "NaN".to_owned(),
                false => number(row.get::<_, f64>(2)?),
            };
            Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, value))
        })?;
        for (key, step, value) in points {
            logged.entry(key).or_default().push((step, value));
        }
        Ok(logged)
    }

    /// The newest runs, each with experiment, name and status, and the number of all runs.
    pub fn runs(&self) -> Result<Runs, Error> {
        let error = |source| Error::Sqlite { path: self.path.clone(), source };
        let total: i64 = self.db.query_row("SELECT count(*) FROM runs", [], |row| row.get(0)).map_err(error)?;
        let sql = format!(
            "SELECT r.run_uuid, e.name, r.name, r.status FROM runs r LEFT JOIN experiments e \
             ON e.experiment_id = r.experiment_id WHERE ?1 = '' ORDER BY r.start_time DESC, r.run_uuid LIMIT {MAX_LISTED_RUNS}"
        );
        let runs = self.bounded_rows(&sql, "", "runs", MAX_LISTED_RUNS, |row| {
            let part = |i| text(row, i).map(Option::unwrap_or_default);
            Ok((part(0)?, format!("{} / {}, {}", part(1)?, part(2)?, part(3)?)))
        })?;
        Ok((runs, total.max(0) as u64))
    }

    fn metrics(&self, run_id: &str) -> Result<BTreeMap<String, String>, Error> {
        let sql = "SELECT key, value, is_nan FROM latest_metrics WHERE run_uuid = ?1";
        let rows = self.rows(sql, run_id, "metrics", |row| {
            let value = match row.get::<_, bool>(2)? {
                true => "NaN".to_owned(),
                false => number(row.get::<_, f64>(1)?),
            };
            Ok((row.get::<_, String>(0)?, value))
        })?;
        Ok(rows.into_iter().collect())
    }

    fn datasets(&self, run_id: &str) -> Result<Vec<LoggedDataset>, Error> {
        if !self.has("datasets", DATASETS)? || !self.has("inputs", INPUTS)? {
            return Ok(Vec::new());
        }
        let rows = self.rows(
            "SELECT i.input_uuid, d.name, d.digest, d.dataset_source FROM inputs i JOIN datasets d \
             ON d.dataset_uuid = i.source_id WHERE i.source_type = 'DATASET' AND i.destination_type = 'RUN' \
             AND i.destination_id = ?1 ORDER BY d.name, d.digest, i.input_uuid",
            run_id,
            "datasets",
            |row| {
                let part = |i| text(row, i).map(Option::unwrap_or_default);
                Ok((part(0)?, part(1)?, part(2)?, part(3)?))
            },
        )?;
        let has_tags = self.has("input_tags", INPUT_TAGS)?;
        let mut datasets = Vec::with_capacity(rows.len());
        for (input, name, digest, source) in rows {
            let tags = match has_tags {
                true => self.table("SELECT name, value FROM input_tags WHERE input_uuid = ?1", &input, "input tags")?,
                false => BTreeMap::new(),
            };
            datasets.push(LoggedDataset { name, digest, source, context: tags.get("mlflow.data.context").cloned() });
        }
        Ok(datasets)
    }

    fn models(&self, run_id: &str) -> Result<Vec<LinkedModel>, Error> {
        let mut models = Vec::new();
        for (kind, table, columns, sql) in [
            (
                "logged",
                "logged_models",
                LOGGED_MODELS,
                "SELECT name, model_id FROM logged_models WHERE source_run_id = ?1",
            ),
            (
                "registered",
                "model_versions",
                MODEL_VERSIONS,
                "SELECT name, version FROM model_versions WHERE run_id = ?1",
            ),
        ] {
            if self.has(table, columns)? {
                let rows = self.rows(&format!("{sql} ORDER BY 1, 2"), run_id, "models", |row| {
                    let part = |i| text(row, i).map(Option::unwrap_or_default);
                    Ok(LinkedModel { kind: kind.to_owned(), name: part(0)?, version: part(1)? })
                })?;
                models.extend(rows);
            }
        }
        Ok(models)
    }

    fn table(&self, sql: &str, id: &str, what: &'static str) -> Result<BTreeMap<String, String>, Error> {
        let rows =
            self.rows(sql, id, what, |row| Ok((text(row, 0)?.unwrap_or_default(), text(row, 1)?.unwrap_or_default())))?;
        Ok(rows.into_iter().collect())
    }

    fn rows<T>(
        &self,
        sql: &str,
        id: &str,
        what: &'static str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        self.bounded_rows(sql, id, what, MAX_ROWS, read)
    }

    fn bounded_rows<T>(
        &self,
        sql: &str,
        id: &str,
        what: &'static str,
        limit: usize,
        mut read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        let error = |source| Error::Sqlite { path: self.path.clone(), source };
        let mut statement = self.db.prepare(sql).map_err(error)?;
        let mut rows = statement.query([id]).map_err(error)?;
        let mut items = Vec::new();
        while let Some(row) = rows.next().map_err(error)? {
            if items.len() == limit {
                return Err(Error::TooMany { path: self.path.clone(), what, limit });
            }
            items.push(read(row).map_err(error)?);
        }
        Ok(items)
    }

    fn require(&self, table: &'static str, columns: &'static [&'static str]) -> Result<(), Error> {
        match self.missing(table, columns)? {
            None => Ok(()),
            Some(found) => Err(Error::NotMlflow { path: self.path.clone(), table, columns, found }),
        }
    }

    fn has(&self, table: &str, columns: &[&str]) -> Result<bool, Error> {
        Ok(self.missing(table, columns)?.is_none())
    }

    /// What is wrong with a table: not there, not an ordinary table, or without a column.
    fn missing(&self, table: &str, columns: &[&str]) -> Result<Option<String>, Error> {
        let kinds = self.rows("SELECT type, sql FROM sqlite_schema WHERE name = ?1", table, "tables", |row| {
            Ok((text(row, 0)?.unwrap_or_default(), text(row, 1)?.unwrap_or_default()))
        })?;
        let ordinary = |(kind, sql): &(String, String)| {
            kind == "table" && !sql.trim_start().to_lowercase().starts_with("create virtual")
        };
        if !kinds.iter().any(ordinary) {
            return Ok(Some("no such table".to_owned()));
        }
        let present = self.rows("SELECT name FROM pragma_table_info(?1)", table, "columns", |row| text(row, 0))?;
        let absent = columns.iter().find(|column| !present.iter().flatten().any(|name| name == *column));
        Ok(absent.map(|column| format!("no column `{column}`")))
    }
}

/// A float as Rust's shortest round-trip text: `18.0`, `5.711540374303548e-8`.
pub(super) fn number(value: f64) -> String {
    format!("{value:?}")
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A column as text: integers and floats are written out, blobs refused, long text cut with a note.
fn text(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<String>> {
    use rusqlite::types::{Type, ValueRef};
    Ok(match row.get_ref(index)? {
        ValueRef::Null => None,
        ValueRef::Integer(n) => Some(n.to_string()),
        ValueRef::Real(x) => Some(number(x)),
        ValueRef::Text(_) => Some(cut(&row.get::<_, String>(index)?)),
        ValueRef::Blob(_) => {
            return Err(rusqlite::Error::InvalidColumnType(index, "text".to_owned(), Type::Blob));
        }
    })
}

fn cut(whole: &str) -> String {
    if whole.len() <= MAX_TEXT_LEN {
        return whole.to_owned();
    }
    let end = (0..=MAX_TEXT_LEN).rev().find(|i| whole.is_char_boundary(*i)).unwrap_or(0);
    format!("{}… ({} more bytes)", &whole[..end], whole.len() - end)
}

fn immutable_uri(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let path: String = path.as_os_str().as_bytes().iter().map(|b| encode_byte(*b, b"/")).collect();
    // `file:` with a path that starts with two slashes would be read as a host.
    let path = if path.starts_with("//") { format!("/.{path}") } else { path };
    format!("file:{path}?mode=ro&immutable=1")
}
