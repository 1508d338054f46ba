//! Keys made here and elsewhere, read and written; signatures of RFC 6979.

use super::*;

/// The key of RFC 6979 appendix A.2.5 as SEC1 PEM is made from its scalar here, so the vector stays readable.
fn rfc6979_p256() -> PrivateKey {
    let scalar: Vec<u8> = hex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721");
    PrivateKey(Secret::P256(p256::ecdsa::SigningKey::from_slice(&scalar).unwrap()))
}

fn rfc6979_p384() -> PrivateKey {
    let scalar =
        hex("6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D896D5724E4C70A825F872C9EA60D2EDF5");
    PrivateKey(Secret::P384(p384::ecdsa::SigningKey::from_slice(&scalar).unwrap()))
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

/// `r` and `s` of a DER signature, without leading zeros.
fn r_and_s(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let r_len = usize::from(der[3]);
    let plain = |bytes: &[u8]| bytes.iter().copied().skip_while(|b| *b == 0).collect();
    (plain(&der[4..4 + r_len]), plain(&der[6 + r_len..]))
}

#[test]
fn ecdsa_signatures_are_those_of_rfc_6979() {
    // Appendix A.2.5, SHA-256, and A.2.6, SHA-384; message "sample".
    assert_eq!(
        r_and_s(&rfc6979_p256().sign(b"sample")),
        (
            hex("EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"),
            hex("F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8"),
        )
    );
    assert_eq!(
        r_and_s(&rfc6979_p384().sign(b"sample")),
        (
            hex("94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA73D64C4EA95AD133C81A648152E44ACF96E36DD1E80FABE46"),
            hex("99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526203B6351D0A3A94FA329C145786E679E7B82C71A38628AC8"),
        )
    );
}

#[test]
fn keys_survive_writing_with_and_without_a_passphrase() {
    for algorithm in KeyAlgorithm::ALL {
        let key = PrivateKey::generate(algorithm).unwrap();
        assert_eq!(key.algorithm(), algorithm);
        let plain = key.to_pem(None);
        assert!(!PrivateKey::is_encrypted(&plain));
        let again = PrivateKey::parse(&plain, None, "k.pem").unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(again.sign(b"x"), key.sign(b"x"));

        let locked = key.to_pem(Some("correct horse"));
        assert!(PrivateKey::is_encrypted(&locked) && !locked.contains(plain.lines().nth(1).unwrap()));
        let again = PrivateKey::parse(&locked, Some("correct horse"), "k.pem").unwrap();
        assert_eq!(again.public(), key.public());
        assert!(matches!(PrivateKey::parse(&locked, Some("wrong"), "k.pem"), Err(Error::WrongPassphrase { .. })));
        assert!(matches!(PrivateKey::parse(&locked, None, "k.pem"), Err(Error::NoPassphrase { .. })));

        let public = PublicKey::parse(key.public().to_pem(), "k.pub").unwrap();
        assert_eq!(public, key.public());
        assert!(public.verifies(b"x", &key.sign(b"x")));
        assert!(!public.verifies(b"y", &key.sign(b"x")));
        assert!(!public.verifies(b"x", b"") && !public.verifies(b"x", &[0; 64]));
        assert!(!PrivateKey::generate(algorithm).unwrap().public().verifies(b"x", &key.sign(b"x")));
    }
}

#[test]
fn a_debug_form_does_not_show_the_key() {
    let key = rfc6979_p256();
    assert_eq!(format!("{key:?}"), "PrivateKey(ecdsa-p256)");
}

#[test]
fn what_is_no_key_is_named() {
    let p256 = rfc6979_p256();
    for (pem, found) in [
        ("", "no PEM text"),
        ("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n", "RSA PRIVATE KEY"),
        (p256.public().to_pem(), "PUBLIC KEY"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "a key of another kind"),
        ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "a key on another curve"),
        (
            "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n",
            "ENCRYPTED SIGSTORE PRIVATE KEY",
        ),
    ] {
        let error = PrivateKey::parse(pem, None, "k.pem").unwrap_err().to_string();
        assert!(error.contains(&format!("found:    {found}")), "{error}");
    }
    let error = PublicKey::parse(&p256.to_pem(None), "k.pub").unwrap_err().to_string();
    assert!(error.contains("found:    PRIVATE KEY"), "{error}");
}

#[test]
fn keys_are_named_as_the_tools_name_them() {
    // The key of fixtures/provenance/model.sig, and the name that model_signing 1.1.1 gave it.
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/provenance");
    let pem = mlpack_fs::read_to_string_bounded(&fixtures.join("pub.pem"), MAX_KEY_LEN).unwrap();
    let key = PublicKey::parse(&pem, "pub.pem").unwrap();
    assert_eq!(key.to_pem(), pem);
    assert_eq!(key.model_signing_hint(), "8af6c42ac7e8f8ec844af9d2cf723234841b23e386832d027903048c5bcc1d3a");
    for hint in [key.sigstore_hint(), key.model_signing_hint(), key.id().to_string()] {
        assert!(key.is_named_by(&hint));
    }
    assert!(!key.is_named_by("") && !key.is_named_by(&rfc6979_p256().public().sigstore_hint()));
}
