//! `mlpack serve`

use crate::cli::ServeArgs;
use crate::exit::Exit;
use crate::show::Show;
use mlpack_oci::Layout;
use mlpack_registry::Server;
use serde_json::json;

/// Serves a layout until it is ended from outside.
pub fn serve(args: &ServeArgs, out: &Show) -> anyhow::Result<Exit> {
    let layout = Layout::open(&args.layout)?;
    let tags = layout.tags()?.into_iter().filter_map(|(tag, _)| tag).count();
    let server = Server::bind(layout, &args.listen)?;
    let address = server.address();
    if !address.ip().is_loopback() {
        out.warnings(&[format!("anyone who reaches {address} can read the layout; there is no authentication")]);
    }
    out.step(&format!("serving {tags} tags of {}, read-only, until interrupted", args.layout.display()));
    let value = json!({"schema": "mlpack.serve/v1", "address": address.to_string(), "layout": args.layout});
    out.result(&format!("http://{address}\n"), &value);
    server.run()?;
    Ok(Exit::Done)
}
