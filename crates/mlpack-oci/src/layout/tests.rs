//! Layouts as we write them, and as someone else might.

use super::*;
use oci_spec::image::DescriptorBuilder;
use oci_spec::image::MediaType;

fn layout() -> (tempfile::TempDir, Layout) {
    let tmp = tempfile::tempdir().unwrap();
    let layout = Layout::open_or_create(&tmp.path().join("layout")).unwrap();
    (tmp, layout)
}

fn opaque(stored: &Stored) -> Descriptor {
    Descriptor::new(MediaType::from("application/octet-stream"), stored.byte_len, oci_digest(&stored.digest))
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// Every file under a directory with its content.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let content = read_bounded(&path, u64::MAX - 1).unwrap();
                files.push((path.strip_prefix(dir).unwrap().to_owned(), content));
            }
        }
    }
    files.sort();
    files
}

fn write_index(layout: &Layout, entries: Value) {
    let index = json!({ "schemaVersion": 2, "manifests": entries });
    fs::write(layout.index_path(), serde_json::to_vec(&index).unwrap()).unwrap();
}

#[test]
fn a_new_layout_is_what_the_specification_says() {
    let (_tmp, layout) = layout();
    let files = tree(layout.dir());
    assert_eq!(
        files,
        [
            (
                PathBuf::from("index.json"),
                br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#.to_vec()
            ),
            (PathBuf::from("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ]
    );
    assert!(oci_spec::image::OciLayout::from_file(layout.dir().join("oci-layout")).is_ok());
    assert!(ImageIndex::from_file(layout.index_path()).is_ok());
    assert_eq!(layout.verify().unwrap(), Verified { blobs: 0, bytes: 0 });
    // Opening again changes nothing.
    Layout::open_or_create(layout.dir()).unwrap();
    assert_eq!(tree(layout.dir()), files);
}

#[test]
fn other_directories_and_versions_are_refused() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join("notes.txt"), "x").unwrap();
    assert!(matches!(Layout::open_or_create(tmp.path()), Err(Error::NotALayout { .. })));
    fs::write(tmp.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(matches!(Layout::open(tmp.path()), Err(Error::LayoutVersion { found, .. }) if found == "2.0.0"));
    fs::write(tmp.path().join("oci-layout"), "{").unwrap();
    assert!(matches!(Layout::open(tmp.path()), Err(Error::MalformedDocument { .. })));
}

#[test]
fn a_run_killed_at_its_first_file_is_taken_over() {
    let tmp = tempfile::tempdir().unwrap();
    fs::write(tmp.path().join(".oci-layout.mlpack-partial"), "{").unwrap();
    assert!(Layout::open_or_create(tmp.path()).is_ok());
}

#[test]
fn a_file_is_stored_once_under_its_digest() {
    let (tmp, layout) = layout();
    let content: Vec<u8> = (0..2_500_000u32).map(|i| (i % 251) as u8).collect();
    let path = tmp.path().join("model.gguf");
    fs::write(&path, &content).unwrap();
    let digest = Sha256::of(&content);
    let first = layout.put_blob_file(&path, None).unwrap();
    assert_eq!(first, Stored { digest, byte_len: content.len() as u64, written: true });
    assert_eq!(read_bounded(&layout.blob_path(&digest), 1 << 30).unwrap(), content);
    for expected in [None, Some(digest)] {
        assert!(!layout.put_blob_file(&path, expected).unwrap().written);
    }
    // A later edit of the source does not reach the layout.
    fs::write(&path, b"edited").unwrap();
    assert_eq!(read_bounded(&layout.blob_path(&digest), 1 << 30).unwrap(), content);
}

#[test]
fn a_blob_cut_short_is_written_anew() {
    let (tmp, layout) = layout();
    let path = tmp.path().join("f");
    fs::write(&path, b"content").unwrap();
    let digest = Sha256::of(b"content");
    fs::write(layout.blob_path(&digest), b"cont").unwrap();
    assert!(layout.put_blob_file(&path, Some(digest)).unwrap().written);
    assert_eq!(read_bounded(&layout.blob_path(&digest), 10).unwrap(), b"content");
}

#[test]
fn a_file_that_is_not_what_the_caller_knows_is_not_stored() {
    let (tmp, layout) = layout();
    let path = tmp.path().join("f");
    fs::write(&path, b"content").unwrap();
    let expected = Sha256::of(b"other");
    let error = layout.put_blob_file(&path, Some(expected)).unwrap_err();
    assert!(matches!(error, Error::ContentMismatch { found, .. } if found == Sha256::of(b"content")));
    assert_eq!(tree(&layout.dir().join("blobs")), []);
    assert!(matches!(layout.put_blob_file(tmp.path(), None), Err(Error::NotAFile { found: "a directory", .. })));
}

#[test]
fn tags_replace_their_own_entry_and_keep_the_others_whole() {
    let (_tmp, layout) = layout();
    let [a, b] = [b"a", b"b"].map(|bytes| opaque(&layout.put_blob_bytes(bytes).unwrap()));
    // Another tool's entry, with fields that we do not know.
    let foreign = json!({
        "mediaType": "application/octet-stream", "digest": a.digest(), "size": 1, "x-other": [1, {"z": 1, "a": 2}],
        "annotations": { media::REF_NAME: "foreign" },
    });
    write_index(&layout, json!([foreign.clone()]));
    layout.tag(&a, &tag("v1")).unwrap();
    layout.tag(&a, &tag("v0")).unwrap();
    layout.tag(&b, &tag("v1")).unwrap();
    let names: Vec<_> = layout.tags().unwrap().into_iter().map(|(name, _)| name.unwrap()).collect();
    assert_eq!(names, ["foreign", "v0", "v1"]);
    assert_eq!(layout.resolve(&tag("v1")).unwrap().digest(), b.digest());
    assert_eq!(layout.entries().unwrap()[0], foreign);
    let error = layout.resolve(&tag("v2")).unwrap_err().to_string();
    assert!(error.ends_with("found:    `foreign`, `v0`, `v1`"), "{error}");

    // The order of tagging does not show.
    let before = read_bounded(&layout.index_path(), 1 << 20).unwrap();
    write_index(&layout, json!([foreign]));
    layout.tag(&b, &tag("v1")).unwrap();
    layout.tag(&a, &tag("v0")).unwrap();
    assert_eq!(read_bounded(&layout.index_path(), 1 << 20).unwrap(), before);
}

#[test]
fn verify_names_every_broken_blob() {
    let (_tmp, layout) = layout();
    let [good, missing, short, wrong] =
        [b"good1", b"gone1", b"short", b"wrong"].map(|bytes| opaque(&layout.put_blob_bytes(bytes).unwrap()));
    for (name, descriptor) in [("a", &good), ("b", &missing), ("c", &short), ("d", &wrong)] {
        layout.tag(descriptor, &tag(name)).unwrap();
    }
    assert_eq!(layout.verify().unwrap(), Verified { blobs: 4, bytes: 20 });
    let path = |d: &Descriptor| layout.blob_path(&sha256(d.digest()).unwrap());
    fs::remove_file(path(&missing)).unwrap();
    fs::write(path(&short), b"sh").unwrap();
    fs::write(path(&wrong), b"WRONG").unwrap();
    match layout.verify() {
        Err(Error::BrokenLayout { problems, .. }) => assert_eq!(
            problems,
            [
                (missing.digest().to_string(), BlobProblem::Missing),
                (short.digest().to_string(), BlobProblem::WrongSize { expected: 5, found: 2 }),
                (wrong.digest().to_string(), BlobProblem::WrongDigest { found: Sha256::of(b"WRONG") }),
            ]
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_digests_never_become_paths() {
    let (_tmp, layout) = layout();
    for digest in [
        "sha256:../../../../etc/passwd",
        "sha256:..",
        "../x",
        "sha256:",
        &format!("sha256:{}", "A".repeat(64)),
        &format!("sha256:{}/..", "a".repeat(61)),
    ] {
        write_index(&layout, json!([{ "mediaType": media::IMAGE_MANIFEST, "digest": digest, "size": 3 }]));
        assert!(matches!(layout.tags(), Err(Error::MalformedDocument { .. })), "{digest}");
    }
    // A well-formed digest of another algorithm is not looked up either.
    let other = format!("sha512:{}", "a".repeat(128));
    write_index(&layout, json!([{ "mediaType": media::IMAGE_MANIFEST, "digest": other, "size": 3 }]));
    let (_, descriptor) = layout.tags().unwrap().remove(0);
    assert!(matches!(
        layout.read_manifest(&descriptor),
        Err(Error::UnreadableBlob { problem: BlobProblem::Algorithm, .. })
    ));
    assert!(matches!(layout.verify(), Err(Error::BrokenLayout { .. })));
}

#[test]
fn documents_are_bounded_and_checked_before_they_are_parsed() {
    let (_tmp, layout) = layout();
    let stored = layout.put_blob_bytes(b"{}").unwrap();
    let manifest = |size: u64| {
        DescriptorBuilder::default()
            .media_type(media::media_type(media::IMAGE_MANIFEST))
            .digest(oci_digest(&stored.digest))
            .size(size)
            .build()
            .unwrap()
    };
    let problem = |size| match layout.read_manifest(&manifest(size)) {
        Err(Error::UnreadableBlob { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(problem(u64::MAX), BlobProblem::TooLarge { limit: DOCUMENT_LIMIT, found: u64::MAX });
    assert_eq!(problem(3), BlobProblem::WrongSize { expected: 3, found: 2 });
    assert!(matches!(problem(2), BlobProblem::NotADocument { expected: "an image manifest", .. }));
    fs::write(layout.blob_path(&stored.digest), b"[]").unwrap();
    assert_eq!(problem(2), BlobProblem::WrongDigest { found: Sha256::of(b"[]") });
}

#[test]
fn indexes_inside_each_other_end_at_the_limit() {
    let (_tmp, layout) = layout();
    let mut child = opaque(&layout.put_blob_bytes(b"leaf").unwrap());
    for _ in 0..=DEPTH_LIMIT {
        let index = json!({ "schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": [child] });
        let stored = layout.put_blob_bytes(&json::canonical(&index)).unwrap();
        child = Descriptor::new(MediaType::ImageIndex, stored.byte_len, oci_digest(&stored.digest));
    }
    layout.tag(&child, &tag("deep")).unwrap();
    let error = layout.verify().unwrap_err().to_string();
    assert!(error.contains("expected: at most 8 indexes inside each other"), "{error}");
}
