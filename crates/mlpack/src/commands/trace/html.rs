//! A trace as one HTML page that needs nothing else: no script, no font, no file beside it.
//!
//! Names are untrusted: every text goes through [`text`] or [`sentence`]. The page's own policy forbids whatever might slip
//! through to load or run anything. The bytes depend on the trace alone.

use super::curves::curves;
use super::picture::picture;
use super::types::type_map;
use crate::html::{INFALLIBLE, sentence, text};
use mlpack_provenance::{Node, NodeKind, RunRecord, State, Trace};
use std::fmt::Write as _;

/// Parameters that people look for first.
const FIRST: [&str; 12] = [
    "base_model",
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "lr_scheduler_type",
    "warmup_ratio",
    "weight_decay",
    "optim",
    "seed",
    "bf16",
];

/// The page.
pub fn page(trace: &Trace) -> String {
    let mut html = String::new();
    write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>Where {} comes from</title>\n<style>\n{}</style>\n\
         </head>\n<body>\n",
        text(&trace.root.name),
        include_str!("style.css")
    )
    .expect(INFALLIBLE);
    let nodes: Vec<&Node> = trace.nodes().collect();
    let run = nodes.iter().copied().find(|node| node.kind == NodeKind::Run);
    header(&mut html, trace, &nodes);
    tiles(&mut html, trace, &nodes, run);
    html.push_str("<section>\n<h2>Lineage</h2>\n");
    picture(&mut html, trace);
    html.push_str("</section>\n");
    if let Some(run) = run {
        training(&mut html, run);
    }
    datasets(&mut html, &nodes);
    for step in nodes.iter().filter(|node| node.kind == NodeKind::Step) {
        if let Some(types) = step.byproducts.get("tensor-types").and_then(|types| types.as_object()) {
            type_map(&mut html, types);
            break;
        }
    }
    steps(&mut html, &nodes);
    files(&mut html, &nodes);
    html.push_str(
        "<p class=\"muted\">verified: the bytes fit, and a trusted key signed the statement. untrusted: signed by a key \
         that is not trusted for it. unsigned: the bytes fit, and nobody signed. claimed: said, with nothing here to check. \
         missing: nothing is there. mismatch: other bytes, or a signature that does not fit.</p>\n</body>\n</html>\n",
    );
    html
}

/// A state as a mark: a shape besides its colour, for people who do not see all colours.
pub fn mark(state: State) -> &'static str {
    match state {
        State::Verified => "✓",
        State::Untrusted => "?",
        State::Unsigned => "○",
        State::Claimed => "“”",
        State::Missing => "∅",
        State::Mismatch => "✗",
    }
}

fn badge(state: State) -> String {
    format!("<span class=\"badge {}\">{} {}</span>", state.name(), mark(state), state.name())
}

fn header(html: &mut String, trace: &Trace, nodes: &[&Node]) {
    let root = &trace.root;
    let digest = root.sha256.map(|digest| digest.to_string()).unwrap_or_default();
    write!(
        html,
        "<header>\n<h1>Where <code>{}</code> comes from</h1>\n<p class=\"digest\">{} <code>sha256:{digest}</code></p>\n",
        text(&root.name),
        badge(root.state)
    )
    .expect(INFALLIBLE);
    let faults: Vec<&&Node> = nodes.iter().filter(|node| node.state == State::Mismatch).collect();
    if !faults.is_empty() {
        html.push_str("<div class=\"verdict bad\"><p>What is stated does not hold:</p>\n<ul>\n");
        for node in faults {
            let note = node.note.as_deref().unwrap_or("mismatch");
            writeln!(html, "<li><code>{}</code>: {}</li>", text(&node.name), sentence(note)).expect(INFALLIBLE);
        }
        html.push_str("</ul></div>\n");
    } else if let Some(note) = &root.note {
        writeln!(html, "<p class=\"verdict\">{}</p>", sentence(note)).expect(INFALLIBLE);
    }
    if trace.cut {
        html.push_str("<p class=\"verdict bad\">The graph is larger than this: a part of it is not shown.</p>\n");
    }
    html.push_str("</header>\n");
}

fn tiles(html: &mut String, trace: &Trace, nodes: &[&Node], run: Option<&Node>) {
    let folders = |wanted: &dyn Fn(&Node) -> bool| {
        let mut names: Vec<&str> = Vec::new();
        for node in nodes.iter().copied().filter(|node| wanted(node)) {
            let name = node.name.split('/').next().unwrap_or_default();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    };
    let of_role = |role: &str| folders(&|node| node.role.as_deref() == Some(role));
    let step = trace.root.children.iter().find(|node| node.kind == NodeKind::Step);
    let fact = |key: &str| step.and_then(|s| s.facts.iter().find(|(k, _)| k == key)).map(|(_, v)| v.clone());
    html.push_str("<dl class=\"tiles\">\n");
    for (what, value) in [
        ("made by", step.map(|step| step.name.clone()).unwrap_or_default()),
        ("quantization", fact("quant").unwrap_or_default()),
        ("base", of_role("base")),
        ("adapter", of_role("adapter")),
        ("training run", run.map(|run| run.name.clone()).unwrap_or_default()),
        ("dataset", folders(&|node| node.kind == NodeKind::Dataset)),
    ] {
        if !value.is_empty() {
            writeln!(html, "<div><dt>{what}</dt><dd>{}</dd></div>", text(&value)).expect(INFALLIBLE);
        }
    }
    html.push_str("</dl>\n");
}

fn training(html: &mut String, run: &Node) {
    write!(
        html,
        "<section>\n<h2>Training run <code>{}</code></h2>\n<p>{} {}</p>\n",
        text(&run.name),
        badge(run.state),
        sentence(run.note.as_deref().unwrap_or_default())
    )
    .expect(INFALLIBLE);
    let Some(record) = run.record.as_deref() else {
        html.push_str("</section>\n");
        return;
    };
    html.push_str("<dl class=\"facts\">\n");
    for (key, value) in &run.facts {
        writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", text(key), text(value)).expect(INFALLIBLE);
    }
    html.push_str("</dl>\n");
    curves(html, record);
    parameters(html, record);
    html.push_str("</section>\n");
}

fn parameters(html: &mut String, record: &RunRecord) {
    if record.params.is_empty() {
        return;
    }
    html.push_str("<h3>Parameters</h3>\n");
    let (mut first, mut rest): (Vec<_>, Vec<_>) =
        record.params.iter().partition(|(key, _)| FIRST.contains(&key.as_str()));
    first.sort_by_key(|(key, _)| FIRST.iter().position(|known| known == key));
    if first.is_empty() {
        std::mem::swap(&mut first, &mut rest);
    }
    let table = |html: &mut String, rows: &[(&String, &String)]| {
        html.push_str("<div class=\"scroll\"><table>\n<tbody>\n");
        for (key, value) in rows {
            writeln!(
                html,
                "<tr><td class=\"l\"><code>{}</code></td><td class=\"l wide\">{}</td></tr>",
                text(key),
                text(value)
            )
            .expect(INFALLIBLE);
        }
        html.push_str("</tbody>\n</table></div>\n");
    };
    table(html, &first);
    if !rest.is_empty() {
        writeln!(html, "<details><summary>{} more</summary>", rest.len()).expect(INFALLIBLE);
        table(html, &rest);
        html.push_str("</details>\n");
    }
    if !record.redacted.is_empty() {
        writeln!(
            html,
            "<p class=\"muted\">Host folders and credentials are left out of: {}.</p>",
            text(&record.redacted.join(", "))
        )
        .expect(INFALLIBLE);
    }
}

fn datasets(html: &mut String, nodes: &[&Node]) {
    let datasets: Vec<&&Node> = nodes.iter().filter(|node| node.kind == NodeKind::Dataset).collect();
    if datasets.is_empty() {
        return;
    }
    html.push_str(
        "<section>\n<h2>Datasets</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th class=\"l\">dataset</th>\
         <th class=\"l\">state</th><th class=\"l\">sha256</th><th class=\"l\">what is said</th></tr></thead>\n<tbody>\n",
    );
    for node in datasets {
        let digest = node.sha256.map_or_else(|| "not known".to_owned(), |digest| digest.to_string());
        let mut said: Vec<String> = node.facts.iter().map(|(k, v)| format!("{}: {}", text(k), text(v))).collect();
        said.extend(node.note.as_deref().map(sentence));
        writeln!(
            html,
            "<tr><td class=\"l\">{}</td><td class=\"l\">{}</td><td class=\"l\"><code class=\"hex\">{digest}</code></td>\
             <td class=\"l wide\">{}</td></tr>",
            text(&node.name),
            badge(node.state),
            said.join("<br>")
        )
        .expect(INFALLIBLE);
    }
    html.push_str("</tbody>\n</table></div>\n</section>\n");
}

fn steps(html: &mut String, nodes: &[&Node]) {
    let steps: Vec<&&Node> =
        nodes.iter().filter(|node| matches!(node.kind, NodeKind::Step | NodeKind::Signature)).collect();
    if steps.is_empty() {
        return;
    }
    html.push_str(
        "<section>\n<h2>Steps and signatures</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th class=\"l\">step</th>\
         <th class=\"l\">state</th><th class=\"l\">statement</th><th class=\"l\">what is said</th></tr></thead>\n<tbody>\n",
    );
    for node in steps {
        let digest = node.sha256.map(|digest| digest.to_string()).unwrap_or_default();
        let facts: Vec<String> = node.facts.iter().map(|(k, v)| format!("{} = {}", text(k), text(v))).collect();
        writeln!(
            html,
            "<tr><td class=\"l\">{}</td><td class=\"l\">{}</td><td class=\"l\"><code class=\"hex\">{digest}</code></td>\
             <td class=\"l wide\">{}<br><span class=\"muted\">{}</span></td></tr>",
            text(&node.name),
            badge(node.state),
            sentence(node.note.as_deref().unwrap_or_default()),
            facts.join("; ")
        )
        .expect(INFALLIBLE);
    }
    html.push_str("</tbody>\n</table></div>\n</section>\n");
}

fn files(html: &mut String, nodes: &[&Node]) {
    let mut seen = Vec::new();
    let files: Vec<&&Node> = nodes
        .iter()
        .filter(|node| matches!(node.kind, NodeKind::Artifact | NodeKind::Evidence | NodeKind::Record))
        .filter(|node| {
            let key = (node.sha256, node.role.as_deref(), node.kind);
            let new = !seen.contains(&key);
            seen.push(key);
            new
        })
        .collect();
    html.push_str(
        "<section>\n<h2>Files</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th class=\"l\">file</th>\
         <th class=\"l\">as</th><th class=\"l\">state</th><th class=\"l\">sha256</th></tr></thead>\n<tbody>\n",
    );
    for node in files {
        let digest = node.sha256.map(|digest| digest.to_string()).unwrap_or_default();
        let role = node.role.as_deref().unwrap_or(node.kind.name());
        writeln!(
            html,
            "<tr><td class=\"l\"><code>{}</code></td><td class=\"l\">{}</td><td class=\"l\">{}</td>\
             <td class=\"l\"><code class=\"hex\">{digest}</code></td></tr>",
            text(&node.name),
            text(role),
            badge(node.state)
        )
        .expect(INFALLIBLE);
    }
    html.push_str("</tbody>\n</table></div>\n</section>\n");
}
