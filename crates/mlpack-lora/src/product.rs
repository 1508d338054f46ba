//! Where float32 products of factors are computed: on the CPU, or on a GPU through candle.

pub(crate) mod check;

use crate::Error;
use crate::delta::Stored;
use candle_core::{Device, Tensor};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

pub use check::WrongElement;

/// Where products of factors are computed. By default that is the CPU.
///
/// A GPU does one product at a time, whoever asks. One that fails, or whose product is seen to be wrong, is asked for no more;
/// what it did not do is done by the CPU, and merged bytes are the same.
#[derive(Clone, Debug, Default)]
pub struct ProductDevice(Option<Gpu>);

#[derive(Clone, Debug)]
struct Gpu {
    opened: Arc<Opened>,
    run: Arc<Run>,
}

#[derive(Debug)]
struct Opened {
    name: String,
    backend: Backend,
    turn: Mutex<()>,
}

/// What one run had of a GPU.
#[derive(Debug, Default)]
struct Run {
    products: AtomicU64,
    failed: OnceLock<Error>,
}

/// Multiplies a left factor by a right one, given with their dimensions: rows, rank, columns.
#[cfg(any(test, feature = "host-model"))]
pub type Multiply = dyn Fn(&[f32], &[f32], [usize; 3]) -> Result<Vec<f32>, String> + Send + Sync;

/// Who multiplies.
enum Backend {
    #[cfg_attr(not(all(feature = "metal", target_os = "macos")), allow(dead_code, reason = "only Metal is opened so"))]
    Candle(Device),
    #[cfg(any(test, feature = "host-model"))]
    Model(Box<Multiply>),
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

impl ProductDevice {
    /// Apple's GPU.
    ///
    /// # Errors
    /// [`Error::MetalNotBuilt`], [`Error::NoMetal`], [`Error::NoMetalGpu`], [`Error::GpuFailed`], and [`Error::GpuInexact`] where
    /// it does not multiply as float32 arithmetic does.
    pub fn metal() -> Result<ProductDevice, Error> {
        if !cfg!(feature = "metal") {
            return Err(Error::MetalNotBuilt);
        }
        let (device, name) = open_metal()?;
        ProductDevice::open(name, Backend::Candle(device))
    }

    /// One that somebody models, for tests.
    ///
    /// # Errors
    /// As [`ProductDevice::metal`] for a GPU that is there.
    #[cfg(any(test, feature = "host-model"))]
    pub fn model(multiply: Box<Multiply>) -> Result<ProductDevice, Error> {
        ProductDevice::open("model".to_owned(), Backend::Model(multiply))
    }

    /// Looks at products of it first.
    fn open(name: String, backend: Backend) -> Result<ProductDevice, Error> {
        let failed = |e: candle_core::Error| Error::GpuFailed { name: name.clone(), reason: one_line(&e) };
        for case in check::cases() {
            let product = case.tensors().and_then(|(left, right)| backend.multiply(&left, &backend.upload(&right)?));
            let product = product.and_then(|product| product.flatten_all()?.to_vec1::<f32>()).map_err(failed)?;
            if let Some(wrong) = check::first_wrong(&case.left, &case.right, case.rank, 0, &product) {
                return Err(Error::GpuInexact { name, rank: case.rank, wrong });
            }
        }
        let opened = Arc::new(Opened { name, backend, turn: Mutex::new(()) });
        Ok(ProductDevice(Some(Gpu { opened, run: Arc::default() })))
    }

    /// What the system calls a GPU; `None` for the CPU.
    pub fn gpu_name(&self) -> Option<&str> {
        self.0.as_ref().map(|gpu| &*gpu.opened.name)
    }

    /// The same for one run, which counts for itself; a GPU that failed before may be asked again.
    pub fn for_run(&self) -> ProductDevice {
        ProductDevice(self.0.as_ref().map(|gpu| Gpu { opened: Arc::clone(&gpu.opened), run: Arc::default() }))
    }

    /// Products that the GPU computed in this run, and why it was not asked for others.
    pub fn used(&self) -> (u64, Option<&Error>) {
        self.0.as_ref().map_or((0, None), |gpu| (gpu.run.products.load(Ordering::Relaxed), gpu.run.failed.get()))
    }

    /// A right factor on the GPU; `None` where there is none, or it fails.
    pub(crate) fn upload(&self, right: &Tensor) -> Option<Tensor> {
        self.ask(|backend| backend.upload(right)).map(|(_, right)| right)
    }

    /// `left · right` by the GPU, where `there` is what it was given as the right factor. `None` where it has failed.
    pub(crate) fn product(&self, left: &Tensor, right: &Tensor, there: &Tensor) -> Option<Tensor> {
        let (gpu, product) = self.ask(|backend| backend.multiply(left, there))?;
        if let Some(wrong) = last_row_wrong(left, right, &product) {
            let rank = left.dims()[1];
            gpu.fail(Error::GpuInexact { name: gpu.opened.name.clone(), rank, wrong });
            return None;
        }
        gpu.run.products.fetch_add(1, Ordering::Relaxed);
        Some(product)
    }

    /// Asks a GPU that has not failed. The lock is more than good manners: candle notices what went wrong in the work that it
    /// waits for, which is that of all threads.
    fn ask<T>(&self, work: impl FnOnce(&Backend) -> candle_core::Result<T>) -> Option<(&Gpu, T)> {
        let gpu = self.0.as_ref().filter(|gpu| gpu.run.failed.get().is_none())?;
        let done = {
            let _turn = gpu.opened.turn.lock().expect("no thread panics holding the lock");
            work(&gpu.opened.backend)
        };
        let failed = |e| gpu.fail(Error::GpuFailed { name: gpu.opened.name.clone(), reason: one_line(&e) });
        Some((gpu, done.map_err(failed).ok()?))
    }
}

impl Gpu {
    /// The first problem is the one that counts.
    fn fail(&self, error: Error) {
        let _ = self.run.failed.set(error);
    }
}

impl Backend {
    fn upload(&self, right: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Backend::Candle(device) => right.to_device(device),
            #[cfg(any(test, feature = "host-model"))]
            Backend::Model(_) => Ok(right.clone()),
        }
    }

    /// The product on the CPU, of a left factor there and a right one that was uploaded.
    fn multiply(&self, left: &Tensor, right: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Backend::Candle(device) => left.to_device(device)?.matmul(right)?.to_device(&Device::Cpu),
            #[cfg(any(test, feature = "host-model"))]
            Backend::Model(multiply) => {
                let ((rows, rank), cols) = (left.dims2()?, right.dims2()?.1);
                let (left, right) = (left.flatten_all()?.to_vec1()?, right.flatten_all()?.to_vec1()?);
                let product = multiply(&left, &right, [rows, rank, cols]).map_err(candle_core::Error::Msg)?;
                Tensor::from_vec(product, (rows, cols), &Device::Cpu)
            }
        }
    }
}

/// Looks at one row of every product: the last, which is there when all others are.
fn last_row_wrong(left: &Tensor, right: &Tensor, product: &Tensor) -> Option<WrongElement> {
    let (&[rows, rank], &[_, cols]) = (left.dims(), right.dims()) else { unreachable!("factors are matrices") };
    let (left, right, product) = (Stored::of(left), Stored::of(right), Stored::of(product));
    let last = rows - 1;
    check::first_wrong(&left.values()[last * rank..], right.values(), rank, last, &product.values()[last * cols..])
}

#[cfg(all(feature = "metal", target_os = "macos"))]
fn open_metal() -> Result<(Device, String), Error> {
    use objc2_metal::MTLDevice as _;
    // Candle takes the first one, and panics where there is none.
    let all = objc2_metal::MTLCopyAllDevices().to_vec();
    let name = all.first().ok_or(Error::NoMetalGpu)?.name().to_string();
    let failed = |e: candle_core::Error| Error::GpuFailed { name: name.clone(), reason: one_line(&e) };
    let device = Device::new_metal(0).map_err(failed)?;
    Ok((device, name))
}

#[cfg(not(all(feature = "metal", target_os = "macos")))]
fn open_metal() -> Result<(Device, String), Error> {
    Err(Error::NoMetal { system: std::env::consts::OS })
}

fn one_line(error: &candle_core::Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
