//! `mlpack verify`

use crate::cli::VerifyArgs;
use crate::exit::Exit;
use crate::keys;
use crate::show::Show;
use anyhow::bail;
use mlpack_provenance::{CheckStore, Finding, TraceOptions};
use mlpack_tensor::Escaped;
use owo_colors::OwoColorize as _;
use serde_json::json;

/// Checks an artifact against trusted keys or a policy.
pub fn verify(args: &VerifyArgs, out: &Show) -> anyhow::Result<Exit> {
    if args.trust.keys.is_empty() && args.trust.policy.is_none() {
        bail!("nobody to trust is named\n  expected: --key KEY.pub or --policy policy.toml");
    }
    let policy = keys::policy(&args.trust)?;
    let options = TraceOptions {
        trust: policy.trust.clone(),
        check_store: CheckStore::No,
        model_signature: args.trust.signature.clone(),
        // A verdict rests on the bytes.
        reuse_digests: false,
        ..TraceOptions::default()
    };
    let trace = super::trace::trace_artifact(&args.artifact, &args.registry, &options)?;
    let findings = policy.judge(&trace);
    let met = findings.iter().all(|finding| finding.met);
    let verdict = if met { "verified" } else { "not verified" };
    let digest = trace.root.sha256.map(|digest| digest.to_string()).unwrap_or_default();
    let mut text: String = findings.iter().map(line).collect();
    text.push_str(&format!("{} is {verdict}  sha256:{digest}\n", mlpack_tensor::Escaped(&args.artifact)));
    let list: Vec<_> = findings.iter().map(|f| json!({"demand": f.demand, "met": f.met, "found": f.found})).collect();
    let value = json!({
        "schema": "mlpack.verify/v1", "verified": met, "sha256": digest, "demands": list, "trace": trace.to_json(),
    });
    out.result(&text, &value);
    Ok(if met { Exit::Done } else { Exit::No })
}

fn line(finding: &Finding) -> String {
    // Our own sentence around untrusted names: control characters are escaped, its quotes stay.
    let plain = |text: &str| text.split('`').map(|part| Escaped(part).to_string()).collect::<Vec<_>>().join("`");
    let (demand, found) = (plain(&finding.demand), plain(&finding.found));
    if finding.met {
        format!("{}  {demand}  ({found})\n", "ok".green())
    } else {
        format!("{}  {demand}\n    found: {found}\n", "no".red())
    }
}
