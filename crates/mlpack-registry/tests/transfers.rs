//! Pushes and pulls against Debian's docker-registry, through a proxy that breaks things on purpose.

#![allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests read what they made, and say what they skip"
)]

mod support;

use mlpack_fs::Sha256;
use mlpack_oci::Package;
use mlpack_registry::{Client, Credentials, Error, Known, Options, PushRequest, Pushed, Wanted, pull, push};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::proxy::{Act, Proxy, Seen};
use support::{Registry, Setup, noise, options, package, quiet};

const MIB: usize = 1 << 20;

fn send(host: &str, package: &Package, options: Options, journal: Option<&Path>) -> Result<Pushed, Error> {
    let client = Client::new(host, options, None)?;
    let request = PushRequest { package, journal, mount_from: &[], places: None, progress: &quiet };
    push(&client.repository("team/model"), &request)
}

/// The blobs of the package in a directory, and the manifest under its tag.
fn fetch(host: &str, package: &Package, dir: &Path, options: Options) -> Result<(), Error> {
    let client = Client::new(host, options, None)?;
    let repository = client.repository("team/model");
    let document = repository.document(Some(&"v1".parse().unwrap()), None)?;
    assert_eq!(document.digest, package.documents()[0].digest);
    pull(&repository, &wanted(package, dir), &quiet)?;
    for blob in package.blobs() {
        let found = mlpack_fs::hash_file(&dir.join(blob.digest().to_string())).unwrap();
        assert_eq!(found, (*blob.digest(), blob.byte_len()));
    }
    let names = std::fs::read_dir(dir).unwrap().count();
    assert_eq!(names, package.blobs().count(), "nothing but the files is left");
    Ok(())
}

fn wanted(package: &Package, dir: &Path) -> Vec<Wanted> {
    let wanted = |digest: &Sha256, byte_len| Wanted {
        digest: *digest,
        byte_len,
        path: dir.join(digest.to_string()),
        known: Vec::new(),
    };
    package.blobs().map(|blob| wanted(blob.digest(), blob.byte_len())).collect()
}

#[test]
fn what_is_pushed_is_pulled_and_nothing_is_sent_twice() {
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let (package, digest) = package(&[40 * MIB, 3 * MIB, 1]);
    let pushed = send(&registry.host, &package, options(), None).unwrap();
    assert_eq!((pushed.sent, pushed.bytes_sent), (4, package.byte_len()));
    let again = send(&registry.host, &package, options(), None).unwrap();
    assert_eq!((again.sent, again.skipped, again.bytes_skipped), (0, 4, package.byte_len()));
    let dir = tempfile::tempdir().unwrap();
    fetch(&registry.host, &package, dir.path(), options()).unwrap();
    // Another repository of the same registry takes the blobs over.
    let client = Client::new(&registry.host, options(), None).unwrap();
    let from = ["team/model".to_owned()];
    let request = PushRequest { package: &package, journal: None, mount_from: &from, places: None, progress: &quiet };
    let mounted = push(&client.repository("other/place"), &request).unwrap();
    assert_eq!((mounted.sent, mounted.skipped), (0, 4));
    assert_eq!(client.repository("other/place").document(None, Some(&digest)).unwrap().digest, digest);
    // So does one that nobody named, once a push has noted where the large ones are.
    let notes = dir.path().join("notes.json");
    for (repository, sent) in [("team/model", 0), ("third/place", 2)] {
        let request = PushRequest { mount_from: &[], places: Some(&notes), ..request };
        assert_eq!(push(&client.repository(repository), &request).unwrap().sent, sent, "{repository}");
    }
}

#[test]
fn a_registry_with_a_password_is_told_it_and_no_message_has_it() {
    let Some(registry) = Registry::start(&Setup { htpasswd: Some(("jo", "s3cret")), ..Setup::default() }) else {
        return;
    };
    let (package, _) = package(&[MIB]);
    let with = |credentials: Option<Credentials>| {
        let client = Client::new(&registry.host, options(), credentials).unwrap();
        let request = PushRequest { package: &package, journal: None, mount_from: &[], places: None, progress: &quiet };
        push(&client.repository("team/model"), &request)
    };
    let password = |password: &str| Credentials::Password { user: "jo".to_owned(), password: password.to_owned() };
    let none = with(None).unwrap_err();
    assert!(matches!(none, Error::Unauthorized { status: 401, credentials: false, .. }), "{none}");
    let wrong = with(Some(password("wr0ng"))).unwrap_err();
    assert!(matches!(wrong, Error::Unauthorized { status: 401, credentials: true, .. }), "{wrong}");
    assert!(!format!("{wrong} {wrong:?}").contains("wr0ng"));
    assert_eq!(with(Some(password("s3cret"))).unwrap().sent, 2);
}

#[test]
fn a_registry_over_tls_is_trusted_with_its_authority_and_not_without() {
    let Some(registry) = Registry::start(&Setup { tls: true, ..Setup::default() }) else { return };
    let (package, _) = package(&[MIB]);
    let tls = Options { plain_http: false, ..options() };
    let error = send(&registry.host, &package, tls.clone(), None).unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert!(error.hint().unwrap().contains("--ca"), "{error}");
    let trusted = Options { ca_files: vec![registry.ca()], ..tls };
    assert_eq!(send(&registry.host, &package, trusted.clone(), None).unwrap().sent, 2);
    let dir = tempfile::tempdir().unwrap();
    fetch(&registry.host, &package, dir.path(), trusted).unwrap();
}

/// A script: what happens to the requests that it is asked about, one after the other; all others pass.
fn script(about: impl Fn(&Seen) -> bool + Send + 'static, acts: Vec<Act>) -> impl FnMut(&Seen) -> Act + Send + 'static {
    let mut acts = acts.into_iter();
    move |seen| if about(seen) { acts.next().unwrap_or(Act::Pass) } else { Act::Pass }
}

fn method(name: &'static str) -> impl Fn(&Seen) -> bool + Send + 'static {
    move |seen| seen.method == name
}

fn status(code: u16) -> Act {
    Act::Answer(code, Vec::new(), br#"{"errors":[{"code":"X","message":"made up"}]}"#.to_vec())
}

/// Pushes through a broken line and checks that everything arrived.
fn survives(acts: Vec<Act>, about: impl Fn(&Seen) -> bool + Send + 'static) -> Option<Proxy> {
    let registry = Registry::start(&Setup::default())?;
    let proxy = Proxy::start(&registry.host, script(about, acts));
    let (package, _) = package(&[5 * MIB + 7]);
    let options = Options { chunk_len: Some(MIB as u64), ..options() };
    let pushed = send(&proxy.host, &package, options, None).unwrap();
    assert_eq!(pushed.sent, 2);
    let dir = tempfile::tempdir().unwrap();
    fetch(&registry.host, &package, dir.path(), support::options()).unwrap();
    Some(proxy)
}

#[test]
fn a_push_survives_dropped_connections_in_the_middle_of_a_chunk() {
    let acts = vec![Act::Pass, Act::DropBody(300_000), Act::Pass, Act::Pass, Act::DropBody(0), Act::Drop];
    survives(acts, method("PATCH"));
}

#[test]
fn a_push_survives_an_answer_that_is_lost() {
    // The registry has the blob; the client does not know.
    survives(vec![Act::Truncate(0), Act::PassAs(502)], |seen| seen.method == "PUT" && seen.target.contains("digest="));
}

#[test]
fn a_push_survives_failures_of_the_registry_and_waits_as_long_as_it_asks() {
    let registry = Registry::start(&Setup::default());
    let Some(registry) = registry else { return };
    let asked = vec![("Retry-After", "7".to_owned())];
    // A date counts from the answer's own.
    let date = |time: &str| format!("Sun, 06 Nov 1994 08:49:{time} GMT");
    let until = vec![("Retry-After", date("48")), ("Date", date("37"))];
    let acts = vec![Act::Answer(429, asked, Vec::new()), Act::Answer(503, until, Vec::new()), status(503), status(500)];
    let proxy = Proxy::start(&registry.host, script(method("POST"), acts));
    let pauses = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&pauses);
    let pause = Arc::new(move |pause: Duration| seen.lock().unwrap().push(pause.as_millis()));
    let (package, _) = package(&[]);
    send(&proxy.host, &package, Options { pause, ..options() }, None).unwrap();
    assert_eq!(*pauses.lock().unwrap(), [7000, 11_000, 2000, 4000]);
}

#[test]
fn limits_of_a_registry_are_learned_and_kept() {
    // 413 above 300 kB, as a proxy before a registry has it.
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let too_large = |seen: &Seen| seen.header("content-length").is_some_and(|v| v.parse::<u64>().unwrap() > 300_000);
    let proxy =
        Proxy::start(
            &registry.host,
            move |seen| {
                if too_large(seen) { Act::AnswerAtOnce(413, Vec::new()) } else { Act::Pass }
            },
        );
    let (package, _) = package(&[3 * MIB]);
    let options = Options { chunk_len: Some(MIB as u64), connections: 1, ..options() };
    send(&proxy.host, &package, options, None).unwrap();
    let refused = proxy.seen().iter().filter(|seen| too_large(seen)).count();
    assert_eq!(refused, 2, "1 MiB and 512 KiB are tried once each");
    let sizes: Vec<u64> = proxy.of("PATCH").iter().map(|seen| seen.body_len).filter(|len| *len > 0).collect();
    assert!(sizes.iter().all(|len| *len == 256 << 10), "{sizes:?}");
}

#[test]
fn registries_that_take_no_second_chunk_get_the_blob_in_one_request() {
    for act in [status(416), status(201), status(405)] {
        let Some(registry) = Registry::start(&Setup::default()) else { return };
        let answer = act.clone();
        let proxy =
            Proxy::start(&registry.host, move |seen| if seen.method == "PATCH" { answer.clone() } else { Act::Pass });
        let (package, _) = package(&[3 * MIB]);
        let options = Options { chunk_len: Some(MIB as u64), ..options() };
        send(&proxy.host, &package, options, None).unwrap();
        let put = proxy.of("PUT").into_iter().find(|seen| seen.body_len == 3 * MIB as u64);
        assert!(put.is_some(), "{act:?}");
        let dir = tempfile::tempdir().unwrap();
        fetch(&registry.host, &package, dir.path(), support::options()).unwrap();
    }
}

#[test]
fn a_new_token_is_fetched_in_the_middle_of_an_upload() {
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let own: Arc<Mutex<String>> = Arc::default();
    let known = Arc::clone(&own);
    // A registry with a token service beside it; the first token ends before the third chunk.
    let mut issued = 0;
    let mut ended = false;
    let proxy = Proxy::start(&registry.host, move |seen| {
        if seen.target.starts_with("/token") {
            assert!(seen.target.contains("scope=repository:team/model:pull,push"), "{}", seen.target);
            issued += 1;
            return Act::Answer(200, Vec::new(), format!("{{\"token\":\"t0ken{issued}\"}}").into_bytes());
        }
        let third = seen.header("content-range").is_some_and(|range| range.starts_with("2097152-"));
        let mut valid = issued > 0 && seen.header("authorization") == Some(&format!("Bearer t0ken{issued}"));
        if third && !ended {
            (valid, ended) = (false, true);
        }
        if valid {
            return Act::Pass;
        }
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", known.lock().unwrap());
        // The whole chunk is taken before the answer comes, as some registries do.
        Act::Answer(401, vec![("WWW-Authenticate", challenge)], Vec::new())
    });
    own.lock().unwrap().clone_from(&proxy.host);
    let (package, _) = package(&[5 * MIB]);
    let options = Options { chunk_len: Some(MIB as u64), connections: 1, ..options() };
    assert_eq!(send(&proxy.host, &package, options, None).unwrap().sent, 2);
    let starts: Vec<String> = proxy.of("PATCH").iter().map(|s| s.header("content-range").unwrap().to_owned()).collect();
    assert_eq!(starts.iter().filter(|range| range.starts_with("2097152-")).count(), 2, "{starts:?}");
    assert_eq!(starts.len(), 6, "no other chunk goes twice: {starts:?}");
}

#[test]
fn a_push_goes_on_in_the_next_run_from_the_last_chunk_that_arrived() {
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("push.json");
    let (package, _) = package(&[5 * MIB]);
    let options = Options { chunk_len: Some(MIB as u64), retries: 0, ..options() };
    let third = |seen: &Seen| seen.header("content-range").is_some_and(|range| range.starts_with("2097152-"));
    let proxy = Proxy::start(&registry.host, script(third, vec![Act::Drop]));
    // The registry sees one address: its sessions belong to it.
    let error = send(&proxy.host, &package, options.clone(), Some(&journal)).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(journal.exists());
    let before = proxy.of("PATCH").len();
    send(&proxy.host, &package, options, Some(&journal)).unwrap();
    let after: Vec<String> =
        proxy.of("PATCH")[before..].iter().map(|s| s.header("content-range").unwrap().to_owned()).collect();
    assert_eq!(after, ["2097152-3145727", "3145728-4194303", "4194304-5242879"]);
    assert!(!journal.exists());
    let out = dir.path().join("out");
    fetch(&registry.host, &package, &out, support::options()).unwrap();
}

#[test]
fn no_credential_goes_to_another_host() {
    let Some(registry) = Registry::start(&Setup { htpasswd: Some(("jo", "s3cret")), ..Setup::default() }) else {
        return;
    };
    let (package, _) = package(&[MIB]);
    let credentials = Credentials::Password { user: "jo".to_owned(), password: "s3cret".to_owned() };
    let client = Client::new(&registry.host, options(), Some(credentials.clone())).unwrap();
    let request = PushRequest { package: &package, journal: None, mount_from: &[], places: None, progress: &quiet };
    push(&client.repository("team/model"), &request).unwrap();
    // Blobs are elsewhere: a storage that wants no authorization and would keep it.
    let data = noise(MIB, 1);
    let storage = Proxy::start("127.0.0.1:1", move |_| Act::Answer(200, Vec::new(), data.clone()));
    let elsewhere = storage.host.clone();
    let front = Proxy::start(&registry.host, move |seen| {
        // The registry itself asks for the password first.
        if blob_get(seen) && seen.header("authorization").is_some() {
            Act::Answer(307, vec![("Location", format!("http://{elsewhere}/x?X-Signature=s1gned"))], Vec::new())
        } else {
            Act::Pass
        }
    });
    let client = Client::new(&front.host, options(), Some(credentials)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let blob = package.blobs().find(|blob| blob.byte_len() == MIB as u64).unwrap();
    let wanted =
        Wanted { digest: *blob.digest(), byte_len: blob.byte_len(), path: dir.path().join("x"), known: Vec::new() };
    pull(&client.repository("team/model"), &[wanted], &quiet).unwrap();
    assert!(storage.seen().iter().all(|seen| seen.header("authorization").is_none()));
    assert!(front.seen().iter().any(|seen| seen.header("authorization").is_some()));
}

/// Pulls a blob of 40 MiB through a broken line.
fn pulls_through(about: impl Fn(&Seen) -> bool + Send + 'static, acts: Vec<Act>) -> Option<Proxy> {
    let registry = Registry::start(&Setup::default())?;
    let (package, _) = package(&[40 * MIB]);
    send(&registry.host, &package, options(), None).unwrap();
    let proxy = Proxy::start(&registry.host, script(about, acts));
    let dir = tempfile::tempdir().unwrap();
    let options = Options { idle: Duration::from_secs(1), ..options() };
    fetch(&proxy.host, &package, dir.path(), options).unwrap();
    Some(proxy)
}

fn blob_get(seen: &Seen) -> bool {
    seen.method == "GET" && seen.target.contains("/blobs/")
}

#[test]
fn a_pull_survives_bodies_that_end_early_stand_still_or_never_come() {
    let acts = vec![Act::Truncate(3_000_000), Act::Drop, Act::Stall(1_000_000), status(503), Act::Truncate(0)];
    if let Some(proxy) = pulls_through(blob_get, acts) {
        let ranges: Vec<String> = proxy.seen().iter().filter_map(|s| s.header("range").map(str::to_owned)).collect();
        // Parts begin at multiples of 16 MiB; one that broke off goes on at another place.
        let start = |range: &String| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok();
        let inside = |range: &String| start(range).is_some_and(|start| start % (16 * MIB) != 0);
        assert!(ranges.iter().any(inside), "it goes on inside of a part: {ranges:?}");
    }
}

#[test]
fn a_pull_survives_one_wrong_byte_and_a_server_without_ranges() {
    pulls_through(blob_get, vec![Act::Pass, Act::Corrupt(5_000_000)]);
    pulls_through(blob_get, vec![Act::Without("range"); 40]);
}

#[test]
fn a_registry_that_lies_is_found_out_and_nothing_is_left() {
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let (package, digest) = package(&[MIB]);
    send(&registry.host, &package, options(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let pulled_from = |act: Act, what: fn(&Seen) -> bool| {
        let proxy = Proxy::start(&registry.host, move |seen| if what(seen) { act.clone() } else { Act::Pass });
        let error = fetch(&proxy.host, &package, &out, options()).unwrap_err();
        assert!(
            !out.exists()
                || std::fs::read_dir(&out)
                    .unwrap()
                    .all(|e| { e.unwrap().file_name().to_string_lossy().starts_with('.') }),
            "no file has its final name"
        );
        error.to_string().replace(&proxy.host, "[HOST]")
    };
    let blob = |seen: &Seen| blob_get(seen) && !seen.target.contains("44136fa3");
    let manifest = |seen: &Seen| seen.target.contains("/manifests/");
    let layer = package.blobs().find(|b| b.byte_len() == MIB as u64).unwrap().digest().to_string();
    let found = pulled_from(Act::Corrupt(77), blob);
    let mut wrong = noise(MIB, 1);
    wrong[77] ^= 1;
    assert_eq!(
        found,
        format!(
            "cannot pull blob sha256:{layer} of `[HOST]/team/model`\n  at `http://[HOST]/v2/team/model/blobs/sha256:{layer}`\n  \
             expected: content of digest sha256:{layer}\n  found:    sha256:{}",
            Sha256::of(&wrong)
        )
    );
    let found = pulled_from(Act::Answer(200, Vec::new(), noise(MIB + 1, 1)), blob);
    assert!(found.ends_with("expected: 1048576 bytes\n  found:    1048577 bytes"), "{found}");
    let found =
        pulled_from(Act::Answer(302, vec![("Location", "/v2/team/model/blobs/x".to_owned())], Vec::new()), blob_get);
    assert!(found.ends_with("expected: at most 5 redirects"), "{found}");
    let found = pulled_from(Act::Corrupt(3), manifest);
    assert!(found.contains(&format!("expected: content of digest sha256:{digest}")), "{found}");
    let bomb = Act::Answer(200, vec![("Content-Type", "application/json".to_owned())], vec![b' '; 5 << 20]);
    let found = pulled_from(bomb, manifest);
    assert!(found.ends_with("expected: at most 4194304 bytes\n  found:    more"), "{found}");
    let found = pulled_from(status(404), manifest);
    assert_eq!(
        found,
        "cannot pull manifest `v1` of `[HOST]/team/model`\n  at `http://[HOST]/v2/team/model/manifests/v1`\n  \
         expected: 200\n  found:    status 404: X: made up"
    );
}

#[test]
fn a_line_that_stays_broken_is_given_up_with_its_reason_and_what_came_is_kept() {
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let (package, _) = package(&[40 * MIB]);
    send(&registry.host, &package, options(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    let proxy = Proxy::start(&registry.host, move |seen| {
        count += u32::from(blob_get(seen) && seen.header("range").is_some());
        if count > 1 && blob_get(seen) { Act::Drop } else { Act::Pass }
    });
    let one = Options { connections: 1, retries: 2, ..options() };
    let error = fetch(&proxy.host, &package, dir.path(), one).unwrap_err();
    assert!(matches!(&error, Error::Unreachable { tries: 3, .. }), "{error}");
    let passing = Proxy::start(&registry.host, |_| Act::Pass);
    fetch(&passing.host, &package, dir.path(), options()).unwrap();
    let again: Vec<_> = passing.seen().iter().filter_map(|s| s.header("range").map(str::to_owned)).collect();
    assert!(!again.iter().any(|range| range.starts_with("bytes=0-")), "the first part was there: {again:?}");
    // Nobody listens at all.
    let closed = Client::new("127.0.0.1:1", Options { retries: 0, ..options() }, None).unwrap();
    let error = closed.repository("x").document(None, None).unwrap_err();
    let text = error.to_string().to_lowercase();
    assert!(
        text.starts_with("cannot reach `http://127.0.0.1:1/v2/x/manifests/latest`\n  found:    connection refused"),
        "{text}"
    );
}

#[test]
fn what_does_not_fit_on_the_disk_is_refused_before_anything_is_asked_or_reserved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/m.gguf");
    // Nobody listens there.
    let client = Client::new("127.0.0.1:1", options(), None).unwrap();
    for byte_len in [1 << 60, u64::MAX] {
        let wanted = Wanted { digest: Sha256::of(b""), byte_len, path: path.clone(), known: Vec::new() };
        let error = pull(&client.repository("x"), &[wanted.clone(), wanted], &quiet).unwrap_err();
        let needed = byte_len.saturating_mul(2);
        assert!(matches!(&error, Error::NoSpace { needed: n, .. } if *n == needed), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_another_file_has_is_copied_and_only_the_rest_is_fetched() {
    let Some(registry) = Registry::start(&Setup::default()) else { return };
    let (package, _) = package(&[40 * MIB]);
    send(&registry.host, &package, options(), None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let old = dir.path().join("old");
    std::fs::write(&old, [&[0; 100][..], &noise(40 * MIB, 1)].concat()).unwrap();
    let blob = package.blobs().find(|blob| blob.byte_len() > 100).unwrap();
    let mib = MIB as u64;
    let known = |start: u64, end: u64| Known { range: start..end, path: old.clone(), offset: start + 100 };
    for (no, (known, act)) in [
        (vec![known(0, mib), known(5 * mib, 30 * mib)], Act::Pass),
        (vec![known(1, 40 * mib)], Act::Pass),
        (vec![known(0, 39 * mib)], Act::Without("range")),
    ]
    .into_iter()
    .enumerate()
    {
        let proxy = Proxy::start(&registry.host, move |_| act.clone());
        let here: u64 = known.iter().map(|known| known.range.end - known.range.start).sum();
        let path = dir.path().join(no.to_string());
        let wanted = Wanted { digest: *blob.digest(), byte_len: blob.byte_len(), path: path.clone(), known };
        let client = Client::new(&proxy.host, options(), None).unwrap();
        let pulled = pull(&client.repository("team/model"), &[wanted], &quiet).unwrap();
        assert_eq!((pulled.bytes_kept, pulled.bytes_fetched), (here, blob.byte_len() - here));
        assert_eq!(mlpack_fs::hash_file(&path).unwrap().0, *blob.digest());
    }
    // The other file is not what it was taken for: everything is fetched.
    let wrong = vec![Known { range: 0..39 * mib, path: old, offset: 0 }];
    let path = dir.path().join("wrong");
    let wanted = Wanted { digest: *blob.digest(), byte_len: blob.byte_len(), path: path.clone(), known: wrong };
    let client = Client::new(&registry.host, options(), None).unwrap();
    pull(&client.repository("team/model"), &[wanted], &quiet).unwrap();
    assert_eq!(mlpack_fs::hash_file(&path).unwrap().0, *blob.digest());
}
