//! Outputs that are sealed, dropped, killed and taken over.

use super::*;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_kept_file_goes_on_where_it_was_and_its_digest_tells_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let file = AtomicFile::create(&path, 6).unwrap();
    file.write_at(2, b"cd").unwrap();
    file.keep();
    assert_eq!(names(dir.path()), [".f.mlpack-partial"]);
    let left = vec![Range { start: 2, end: 4 }];
    let (file, taken) = AtomicFile::resume(&path, 6, &left).unwrap();
    assert_eq!(taken, left);
    file.write_at(4, b"ef").unwrap();
    file.write_at(0, b"ab").unwrap();
    assert_eq!(file.seal().unwrap(), Sha256::of(b"abcdef"));
    assert_eq!(names(dir.path()), ["f"]);
    // Nothing is left of it, or something of another length: it starts anew.
    let (file, taken) = AtomicFile::resume(&path, 6, &left).unwrap();
    assert_eq!(taken, []);
    file.keep();
    assert_eq!(AtomicFile::resume(&path, 7, &left).unwrap().1, []);

    let output = dir.path().join("d");
    let kept = AtomicDir::resume(&output).unwrap();
    for name in ["x", ".y.mlpack-partial", ".mlpack-journal"] {
        fs::write(kept.contents().join(name), "x").unwrap();
    }
    kept.keep();
    let again = AtomicDir::resume(&output).unwrap();
    assert!(again.contents().join("x").is_file());
    again.seal().unwrap();
    assert_eq!(names(&output), ["x"], "what is still in work is no part of it");
}

#[test]
fn what_is_right_of_a_left_file_stays_and_the_rest_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let write = |file: &AtomicFile| {
        // Other extents than those of the first run.
        file.write_at(0, b"abcd").unwrap();
        file.write_at(4, b"efgh").unwrap();
    };
    let left = |bytes: &[u8]| fs::write(dir.path().join(".f.mlpack-partial"), bytes).unwrap();
    let prefixes = [(3, Sha256::of(b"abc")), (6, Sha256::of(b"abcdef"))];
    for (there, kept) in [(&b"abcdef\0\0"[..], 6), (b"abcdeX\0\0", 3), (b"aXcdef\0\0", 0), (b"abcdef", 0)] {
        left(there);
        let file = AtomicFile::take_up(&path, 8, &prefixes).unwrap();
        assert_eq!((file.kept(), file.prefix(8)), (kept, None));
        write(&file);
        assert_eq!(file.prefix(8), Some((8, Sha256::of(b"abcdefgh"))));
        assert_eq!(file.seal().unwrap(), Sha256::of(b"abcdefgh"), "{kept}");
        assert_eq!(crate::read_bounded(&path, 1 << 10).unwrap(), b"abcdefgh");
    }
    // All of it, under its final name already; nothing is written to it.
    let whole = [(8, Sha256::of(b"abcdefgh"))];
    let before = path.metadata().unwrap().modified().unwrap();
    let file = AtomicFile::take_up(&path, 8, &whole).unwrap();
    assert_eq!((file.kept(), path.exists()), (8, false));
    write(&file);
    file.seal().unwrap();
    assert_eq!(path.metadata().unwrap().modified().unwrap(), before);
    // A record of more than the file is long.
    left(b"abcdefgh");
    assert_eq!(AtomicFile::take_up(&path, 8, &[(9, Sha256::of(b""))]).unwrap().kept(), 0);
}

#[test]
fn any_write_order_gives_the_digest_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    let pieces: Vec<(usize, usize)> = (0..content.len()).step_by(70_001).map(|s| (s, 70_001)).collect();
    for order in 0..3 {
        let path = dir.path().join(format!("f{order}"));
        let file = AtomicFile::create(&path, content.len() as u64).unwrap();
        let mut pieces = pieces.clone();
        match order {
            0 => {}
            1 => pieces.reverse(),
            _ => pieces.sort_by_key(|(s, _)| s % 7),
        }
        std::thread::scope(|scope| {
            for half in pieces.chunks(pieces.len() / 2 + 1) {
                let (file, content) = (&file, &content);
                scope.spawn(move || {
                    for &(start, len) in half {
                        let end = (start + len).min(content.len());
                        file.write_at(start as u64, &content[start..end]).unwrap();
                    }
                });
            }
        });
        assert_eq!(file.digest().unwrap(), Sha256::of(&content));
        assert!(!path.exists());
        assert_eq!(file.seal().unwrap(), Sha256::of(&content));
        assert_eq!(crate::read_bounded(&path, 1 << 24).unwrap(), content);
    }
}

#[test]
fn bytes_left_to_the_thread_that_writes_are_hashed_at_once_and_written_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let file = AtomicFile::create(&path, 8).unwrap();
    let turn = file.queue.enter(1);
    file.write_at(4, b"ef").unwrap();
    file.write_at(0, b"abcd").unwrap();
    assert_eq!(file.prefix(1), Some((6, Sha256::of(b"abcdef"))));
    let partial = dir.path().join(".out.mlpack-partial");
    assert_eq!(crate::read_bounded(&partial, 1 << 10).unwrap(), [0; 8]);
    drop(turn);
    file.write_at(6, b"gh").unwrap();
    assert_eq!(file.seal().unwrap(), Sha256::of(b"abcdefgh"));
    assert_eq!(crate::read_bounded(&path, 1 << 10).unwrap(), b"abcdefgh");
}

#[test]
fn dropping_leaves_nothing_and_a_leftover_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    drop(AtomicFile::create(&path, 10).unwrap());
    assert_eq!(names(dir.path()), [""; 0]);
    fs::write(dir.path().join(".out.mlpack-partial"), b"left by a killed run, and longer").unwrap();
    assert_eq!(write_atomic(&path, b"abc").unwrap(), Sha256::of(b"abc"));
    assert_eq!(names(dir.path()), ["out"]);
    assert_eq!(crate::read_bounded(&path, 1 << 24).unwrap(), b"abc");
}

#[test]
fn a_second_writer_of_the_same_output_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let first = AtomicFile::create(&path, 3).unwrap();
    assert!(matches!(AtomicFile::create(&path, 3), Err(Error::Busy { .. })));
    first.write_at(0, b"abc").unwrap();
    first.seal().unwrap();
    assert_eq!(crate::read_bounded(&path, 1 << 24).unwrap(), b"abc");
}

#[test]
fn more_than_the_disk_holds_is_refused_before_any_write() {
    let dir = tempfile::tempdir().unwrap();
    let error = AtomicFile::create(&dir.path().join("out"), 1 << 55).unwrap_err();
    assert!(matches!(error, Error::NoSpace { needed: 36_028_797_018_963_968, .. }), "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_directory_is_whole_or_absent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let out = AtomicDir::create(&path).unwrap();
    write_atomic(&out.contents().join("a"), b"a").unwrap();
    assert!(!path.exists());
    drop(out);
    assert_eq!(names(dir.path()), [""; 0]);
    let out = AtomicDir::create(&path).unwrap();
    write_atomic(&out.contents().join("b"), b"b").unwrap();
    out.seal().unwrap();
    assert_eq!(names(&path), ["b"]);
    assert!(matches!(AtomicDir::create(&path), Err(Error::NotEmpty { .. })));
    let out = AtomicDir::replace(&path).unwrap();
    write_atomic(&out.contents().join("c"), b"c").unwrap();
    assert_eq!(names(&path), ["b"]);
    out.seal().unwrap();
    assert_eq!((names(&path), names(dir.path())), (vec!["c".to_owned()], vec!["out".to_owned()]));
}
