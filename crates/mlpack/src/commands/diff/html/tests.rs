//! The page: what it says, what it must not contain, and that it copes with small, large and hostile models.

use super::*;
use mlpack_convert::{Diff, Limits, MaxError, Reshaped, Stored, TensorError, Unpaired};
use mlpack_tensor::{Dtype, GgmlType, Shape};

/// A tensor with the relative error asked for.
fn tensor(name: &str, ty: GgmlType, relative: f64) -> TensorDiff {
    let shape = Shape::new(vec![64, 256]);
    let source_square = 16_384.0 * 4e-4;
    let error = TensorError {
        elements: 16_384,
        squared_error: source_square * relative * relative,
        source_square,
        stored_square: source_square,
        dot: source_square * (1.0 - relative * relative / 2.0),
        max: MaxError { error: relative / 10.0, row: 3, column: 141 },
    };
    let byte_len = ty.byte_len(&shape).unwrap();
    let (a, b) = (Stored::Safetensors(Dtype::BF16), Stored::Ggml(ty));
    TensorDiff { name: name.to_owned(), shape, a, b, byte_len, error }
}

/// Layers with a mixture of types, and tensors outside them.
fn model(layers: usize) -> Diff {
    let outside = [("token_embd.weight", GgmlType::Q6_K, 0.02), ("output_norm.weight", GgmlType::F32, 0.0)];
    let mut tensors: Vec<TensorDiff> = outside.map(|(name, ty, relative)| tensor(name, ty, relative)).into();
    for layer in 0..layers {
        let name = |kind: &str| format!("blk.{layer}.{kind}.weight");
        tensors.push(tensor(&name("attn_norm"), GgmlType::F32, 0.0));
        for kind in ["ffn_down", "attn_q", "attn_k"] {
            tensors.push(tensor(&name(kind), GgmlType::Q4_K, 0.08));
        }
        let (ty, relative) = if layer % 2 == 0 { (GgmlType::Q6_K, 0.02) } else { (GgmlType::Q4_K, 0.09) };
        tensors.push(tensor(&name("attn_v"), ty, relative));
    }
    Diff { tensors, ..Diff::default() }
}

fn of(diff: Diff, limits: Limits) -> String {
    page(&Report::new("base".to_owned(), "out/base-Q4_K_M.gguf".to_owned(), diff, limits))
}

/// Every tag that is opened is closed in order, and attributes are quoted: stricter than a browser.
fn assert_well_formed(html: &str) {
    let mut open = Vec::new();
    let mut rest = html.split_once("<html").expect("the page has a root").1;
    rest = rest.split_once('>').expect("the root tag ends").1;
    while let Some((_, after)) = rest.split_once('<') {
        let (tag, after) = after.split_once('>').expect("a tag ends");
        rest = after;
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        let name = tag.split([' ', '/']).find(|part| !part.is_empty()).expect("a tag has a name");
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) if name == "html" => assert!(open.is_empty(), "{open:?}"),
            (true, _) => assert_eq!(open.pop(), Some(name), "</{name}>"),
            (false, true) => {}
            (false, false) if matches!(name, "meta" | "wbr") => {}
            (false, false) => open.push(name),
        }
        if name == "style" && !tag.starts_with('/') {
            rest = &rest[rest.find("</style>").expect("the style ends")..];
        }
    }
}

#[test]
fn pages_of_any_size_are_well_formed_and_need_nothing_else() {
    for layers in [0, 1, 2, 126, 400] {
        let limits = Limits { max_rmse: Some(0.0017), min_cosine: Some(0.996) };
        for html in [of(model(layers), Limits::default()), of(model(layers), limits)] {
            assert_well_formed(&html);
            for outside in ["<script", "http:", "https:", "src=", "href", "@import", "url("] {
                assert!(!html.contains(outside), "{layers}: {outside}");
            }
            assert!(!html.contains("NaN") && !html.contains("inf "), "{layers}");
        }
    }
}

#[test]
fn plots_show_layers_by_type_in_reading_order() {
    let html = of(model(6), Limits::default());
    let place = |what: &str| html.find(what).unwrap_or_else(|| panic!("no {what}"));
    assert!(place("<h3>attn_q</h3>") < place("<h3>attn_k</h3>"));
    assert!(place("<h3>attn_v</h3>") < place("<h3>ffn_down</h3>"));
    assert!(!html.contains("<h3>attn_norm</h3>"), "what has no error has no plot");
    assert!(html.contains("Without any error in every layer: <code>attn_norm</code> (6 tensors)."));
    assert!(html.contains("<span class=\"muted\">3 Q4_K, 3 Q6_K</span>"));
    assert!(html.contains("<title>blk.3.attn_v.weight: Q4_K, 9.00 % relative, RMSE 0.001800, cosine 0.995950</title>"));
    assert_eq!(html.matches("<figure>").count(), 4);
}

#[test]
fn what_exceeds_a_limit_is_said_in_words() {
    let html = of(model(4), Limits { max_rmse: Some(0.0017), min_cosine: Some(0.5) });
    let verdict = "2 of 22 tensors over the limits. Limits: RMSE at most 0.0017, cosine at least 0.5.";
    assert!(html.contains(&format!("<p class=\"verdict bad\">{verdict}</p>")));
    assert!(html.contains("<span class=\"bad\">2 of 4 over the limit</span>"));
    assert!(html.contains("limit 0.0017</text>"));
    assert!(html.contains("<td class=\"l bad\">RMSE over</td>"));
    let html = of(model(4), Limits { max_rmse: Some(0.1), min_cosine: None });
    assert!(html.contains("<p class=\"verdict\">Every tensor keeps the limits: RMSE at most 0.1.</p>"));
    assert!(!html.contains("over the limits"));
}

#[test]
fn names_of_strangers_are_text() {
    const EVIL: &str = "blk.0.</code><script>alert(\"1\")</script>'&\u{202e}\u{1b}[31m.weight";
    let mut diff = model(2);
    diff.tensors.push(tensor(EVIL, GgmlType::Q4_0, 0.1));
    diff.tensors.push(tensor("blk.18446744073709551615.attn_q.weight", GgmlType::Q4_0, 0.1));
    diff.tensors.push(tensor("blk.4095.attn_q.weight", GgmlType::Q4_0, 0.1));
    diff.tensors[3].error.squared_error = f64::NAN;
    let stored = Stored::Ggml(GgmlType::F16);
    diff.only_in_a.push(Unpaired { name: EVIL.to_owned(), stored, shape: Shape::new(vec![2]) });
    diff.reshaped.push(Reshaped { name: EVIL.to_owned(), a: Shape::new(vec![2]), b: Shape::new(vec![3]) });
    let html = page(&Report::new("<a onload='x'>".to_owned(), format!("{EVIL}\""), diff, Limits::default()));
    assert_well_formed(&html);
    assert!(
        !html.contains("<script") && !html.contains("<a ") && !html.contains('\u{202e}') && !html.contains('\u{1b}')
    );
    assert!(html.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&#39;&amp;\\u{202e}\\u{1b}[31m"));
    assert!(html.contains("1 tensor with values that are not finite; 2 tensors not compared."));
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    assert_eq!(of(model(9), Limits::default()), of(model(9), Limits::default()));
}

#[test]
fn a_perfect_copy_has_no_plots() {
    let tensors = vec![tensor("blk.0.attn_q.weight", GgmlType::F32, 0.0)];
    let html = of(Diff { tensors, ..Diff::default() }, Limits::default());
    assert!(html.contains("Every compared tensor of B holds the values of A, without any error."));
    assert!(!html.contains("<figure>"));
}
