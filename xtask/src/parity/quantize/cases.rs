//! What is asked of both quantizers.

/// One run of each tool.
#[derive(Clone, Debug)]
pub struct Case {
    pub input: &'static str,
    pub quant: String,
    /// Options as a person would type them; none has a blank in it.
    pub options: &'static str,
    /// Whether both refuse; `None` for whatever the reference does.
    pub refused: Option<bool>,
}

/// Input, file type, options, and whether both tools refuse.
type Row = (&'static str, &'static str, &'static str, bool);

/// An option that only mlpack needs: the reference takes experts that were never visited without being told.
const OURS_ALONE: &str = "--allow-unvisited-experts";

impl Case {
    pub fn of(row: &Row) -> Case {
        let (input, quant, options, refused) = *row;
        Case { input, quant: quant.to_owned(), options, refused: Some(refused) }
    }

    pub fn title(&self) -> String {
        let from = if self.input == "model.gguf" { String::new() } else { format!("{} to ", self.input) };
        format!("{from}{} {}", self.quant, self.options).trim_end().to_owned()
    }

    /// Whether the outputs are one file for each of the input's.
    pub fn splits(&self) -> bool {
        self.options.contains("--keep-split")
    }

    pub fn reference_options(&self) -> impl Iterator<Item = &'static str> {
        self.options.split_whitespace().filter(|option| *option != OURS_ALONE)
    }
}

/// Every file type, without and with an importance matrix.
pub fn file_types(names: &[String]) -> Vec<Case> {
    let of = |options| {
        names.iter().map(move |name| Case { input: "model.gguf", quant: name.clone(), options, refused: None })
    };
    of("").chain(of("--imatrix imatrix.gguf")).collect()
}

/// Each option by itself and with others, on a dense model whose embeddings are tied and whose rows of 576 are not whole
/// blocks of 256.
pub const OPTIONS: &[Row] = &[
    ("model.gguf", "Q4_K", "--pure", false),
    ("model.gguf", "Q6_K", "--pure", false),
    ("model.gguf", "IQ4_XS", "--pure --imatrix imatrix.gguf", false),
    ("model.gguf", "IQ2_XXS", "--pure", true),
    ("model.gguf", "Q8_0", "--pure --output-tensor-type F16", false),
    ("model.gguf", "Q4_K_M", "--tensor-type attn_v=Q6_K", false),
    ("model.gguf", "Q4_K_M", "--tensor-type blk\\.[0-3]\\.ffn_down=q8_0 --tensor-type ffn_(up|gate)=iq4_nl", false),
    ("model.gguf", "Q4_K_M", "--tensor-type FFN_DOWN=Q3_K --tensor-type ffn_down=Q2_K", false),
    ("model.gguf", "Q4_K_M", "--tensor-type ^blk\\.1\\d\\..*(q|k)\\.weight$=bf16 --tensor-type token_embd=Q4_0", false),
    ("model.gguf", "Q5_0", "--tensor-type-file types.txt", false),
    ("model.gguf", "Q5_0", "--tensor-type-file types.txt --pure --tensor-type attn_k=Q4_1", false),
    ("model.gguf", "F16", "--tensor-type ffn_down=Q8_0 --token-embedding-type Q8_0", false),
    ("model.gguf", "Q4_K_M", "--tensor-type attn_v=Q9_K", true),
    ("model.gguf", "Q4_K_M", "--tensor-type attn_v", true),
    ("model.gguf", "Q4_K_M", "--output-tensor-type Q8_0", false),
    ("model.gguf", "Q4_K_M", "--token-embedding-type Q5_1", false),
    ("model.gguf", "Q4_K_M", "--output-tensor-type F16 --token-embedding-type iq4_nl", false),
    ("model.gguf", "Q4_K_M", "--output-tensor-type Q5_K", false),
    ("model.gguf", "Q4_K_M", "--token-embedding-type Q5_K", true),
    ("model.gguf", "Q4_K_M", "--leave-output-tensor", false),
    ("model.gguf", "Q4_K_M", "--prune-layers 1,2", false),
    ("model.gguf", "Q4_K_M", "--prune-layers 29,0,14 --imatrix imatrix.gguf", false),
    ("model.gguf", "IQ3_XXS", "--prune-layers 5 --imatrix imatrix.gguf", false),
    ("model.gguf", "COPY", "--prune-layers 3,4,5,6", false),
    ("model.gguf", "Q4_0", "--prune-layers x", true),
    ("model.gguf", "COPY", "--override-kv llama.context_length=int:4096", false),
    (
        "model.gguf",
        "Q4_0",
        "--override-kv general.name=str:Renamed --override-kv tokenizer.ggml.add_bos_token=bool:true \
         --override-kv llama.rope.freq_base=float:50000.1 --override-kv own.number=int:-5 --override-kv own.text=str:",
        false,
    ),
    ("model.gguf", "Q4_K_M", "--override-kv own.number=int:7 --imatrix imatrix.gguf", false),
    ("model.gguf", "Q4_0", "--override-kv own.flag=bool:maybe", true),
    ("model.gguf", "Q4_0", "--override-kv own.number=u8:1", true),
    ("model.gguf", "Q4_K_M", "--imatrix imatrix.dat", false),
    ("model.gguf", "IQ2_M", "--imatrix imatrix.dat", false),
    ("model.gguf", "Q4_K_M", "--imatrix imatrix.gguf --include-weights attn_ --include-weights ffn_up", false),
    ("model.gguf", "Q4_K_M", "--imatrix imatrix.gguf --exclude-weights ffn_down", false),
    ("model.gguf", "IQ2_XXS", "--imatrix imatrix.gguf --exclude-weights blk.7.ffn_down", true),
    ("model.gguf", "Q4_K_M", "--imatrix absent.gguf", true),
    ("Q8_0.gguf", "Q4_K_M", "", true),
    ("Q8_0.gguf", "Q4_K_M", "--allow-requantize", false),
    ("Q8_0.gguf", "F16", "--allow-requantize", false),
    ("Q8_0.gguf", "IQ2_XS", "--allow-requantize --imatrix imatrix.gguf", false),
    ("Q4_K_M.gguf", "Q8_0", "", true),
    ("Q4_K_M.gguf", "Q8_0", "--allow-requantize", false),
    ("Q4_K_M.gguf", "Q4_K_M", "", false),
    ("Q4_K_M.gguf", "Q3_K_M", "--allow-requantize", false),
    ("Q4_K_M.gguf", "F32", "--allow-requantize", false),
    ("Q4_K_M.gguf", "COPY", "", false),
    ("F16.gguf", "Q4_K_M", "", false),
    ("F16.gguf", "Q8_0", "", false),
    ("F16.gguf", "BF16", "", false),
    ("F16.gguf", "F32", "", false),
    ("split-00001-of-00003.gguf", "Q4_K_M", "", false),
    ("split-00001-of-00003.gguf", "COPY", "", false),
    ("split-00001-of-00003.gguf", "Q4_K_M", "--keep-split", false),
    (
        "split-00001-of-00003.gguf",
        "Q5_K_M",
        "--keep-split --imatrix imatrix.gguf --override-kv own.number=int:7",
        false,
    ),
    ("split-00001-of-00003.gguf", "COPY", "--keep-split --prune-layers 0,29", false),
    ("split-00002-of-00003.gguf", "COPY", "", true),
];

/// What experts, and an output matrix of its own, make different.
pub const EXPERT_OPTIONS: &[Row] = &[
    ("model.gguf", "Q4_K_M", "--leave-output-tensor", false),
    ("model.gguf", "Q4_K_M", "--output-tensor-type Q5_K --token-embedding-type Q3_K", false),
    ("model.gguf", "MXFP4_MOE", "--pure", false),
    ("model.gguf", "Q4_K_M", "--tensor-type ffn_.*_exps=IQ4_XS --tensor-type attn=Q8_0", false),
    ("model.gguf", "Q4_K_M", "--prune-layers 3 --imatrix imatrix.gguf", false),
    ("model.gguf", "Q4_K_M", "--imatrix unvisited.gguf --allow-unvisited-experts", false),
    ("model.gguf", "IQ2_XXS", "--imatrix unvisited.gguf --allow-unvisited-experts", false),
];
