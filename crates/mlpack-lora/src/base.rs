//! What the config of a base says that decides how adapters are laid over it.

use crate::Error;
use crate::matrix::to_f64;
use crate::target::BlockScales;
use mlpack_fs::read_bounded;
use mlpack_safetensors::{Checkpoint, TensorInfo};
use mlpack_tensor::Dtype;
use serde_json::Value;

/// The largest config that is read.
const MAX_CONFIG_LEN: u64 = 64 << 20;

/// Model types whose linear layers store their weight as `[in, out]` (transformers' `Conv1D`), and the layers' names.
const CONV1D_MODELS: &[&str] = &["gpt2", "openai-gpt", "imagegpt", "decision_transformer"];
const CONV1D_LAYERS: &[&str] = &["c_attn", "c_fc", "c_proj", "q_attn"];

/// Model types whose stacks of experts are `[experts, in, out]` (transformers 5.23, `is_transposed`).
const TRANSPOSED_STACKS: &[&str] = &["gpt_oss", "aria", "aria_text", "openai_privacy_filter"];

/// Rows and columns of the blocks of FP8 checkpoints whose config does not tell.
const DEFAULT_BLOCK: u64 = 128;

/// The parts of config.json that count.
#[derive(Debug, Default)]
pub(crate) struct BaseConfig {
    /// `tie_word_embeddings`, where it is there.
    pub tied: Option<bool>,
    model_type: String,
    block: Option<(u64, u64)>,
}

impl BaseConfig {
    /// Reads the config of a checkpoint; a directory without one has the defaults.
    ///
    /// # Errors
    /// [`Error::QuantizedBase`] where the weights are not numbers that something could be added to.
    pub(crate) fn open(base: &Checkpoint) -> Result<BaseConfig, Error> {
        let path = base.dir().join("config.json");
        if !path.is_file() {
            return Ok(BaseConfig::default());
        }
        let bytes = read_bounded(&path, MAX_CONFIG_LEN)?;
        let config: Value = serde_json::from_slice(&bytes)
            .map_err(|e| Error::BaseConfig { path: path.clone(), reason: e.to_string() })?;
        let text = |key: &str| config.get(key).or_else(|| config.get("text_config")?.get(key));
        let quantization = config.get("quantization_config").filter(|v| !v.is_null());
        let method = quantization.map(|q| q.get("quant_method").and_then(Value::as_str).unwrap_or("not named"));
        if let Some(method) = method.filter(|method| *method != "fp8" && *method != "fbgemm_fp8") {
            return Err(Error::QuantizedBase { path, method: method.to_owned() });
        }
        let block = quantization.and_then(|q| {
            let block = q.get("weight_block_size")?.as_array()?;
            Some((block.first()?.as_u64()?, block.get(1)?.as_u64()?))
        });
        Ok(BaseConfig {
            tied: text("tie_word_embeddings").and_then(Value::as_bool),
            model_type: config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned(),
            block: block.filter(|(rows, cols)| *rows > 0 && *cols > 0),
        })
    }

    /// Whether a module's weight is `[in, out]`, where its shape does not tell.
    pub(crate) fn is_conv1d(&self, module: &str) -> bool {
        let leaf = module.rsplit('.').next().unwrap_or(module);
        CONV1D_MODELS.contains(&self.model_type.as_str()) && CONV1D_LAYERS.contains(&leaf)
    }

    /// Whether stacks of experts are `[experts, in, out]`, where their shape does not tell.
    pub(crate) fn has_transposed_stacks(&self) -> bool {
        TRANSPOSED_STACKS.contains(&self.model_type.as_str())
    }

    /// The scales of an FP8 tensor: `NAME_scale_inv` (DeepSeek's and transformers' `fp8`) or `NAME_scale`.
    ///
    /// # Errors
    /// A description of scales that do not fit the tensor.
    pub(crate) fn scales(&self, base: &Checkpoint, tensor: &TensorInfo) -> Result<Option<BlockScales>, String> {
        if !matches!(tensor.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2) {
            return Ok(None);
        }
        let names = ["_scale_inv", "_scale"].map(|end| format!("{}{end}", tensor.name));
        let Some(scales) = names.iter().find_map(|name| base.tensor(name)) else { return Ok(None) };
        let mut values = vec![0.0; scales.shape.element_count().unwrap_or(0) as usize];
        match scales.dtype {
            // A power of two by its exponent alone.
            Dtype::F8_E8M0 => values
                .iter_mut()
                .zip(base.bytes(scales))
                .for_each(|(value, byte)| *value = 2f64.powi(i32::from(*byte) - 127)),
            dtype if dtype.is_float() => to_f64(dtype, base.bytes(scales), &mut values),
            other => return Err(format!("scales `{}` of type {other}", scales.name)),
        }
        let fail =
            || format!("scales `{}` of shape {} for a tensor of shape {}", scales.name, scales.shape, tensor.shape);
        let &[rows, cols] = tensor.shape.dims() else { return Err(fail()) };
        let (down, across) = match *scales.shape.dims() {
            [] | [1] => (1, 1),
            [down] => (down, 1),
            [down, across] => (down, across),
            _ => return Err(fail()),
        };
        let (block_rows, block_cols) = self.block.unwrap_or((DEFAULT_BLOCK, DEFAULT_BLOCK));
        let size = |len: u64, blocks: u64, configured: u64| match blocks {
            1 => Some(len.max(1)),
            n if n == len => Some(1),
            n if len.div_ceil(configured) == n => Some(configured),
            _ => None,
        };
        let block_rows = size(rows, down, block_rows).ok_or_else(fail)?;
        let block_cols = size(cols, across, block_cols).ok_or_else(fail)?;
        Ok(Some(BlockScales { values, block_rows, block_cols, per_row: across }))
    }
}
