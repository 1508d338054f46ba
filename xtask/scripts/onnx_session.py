"""A graph in ONNX Runtime, at one of its four levels of optimization."""
import onnxruntime as ort

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")


def opened(file, level="ENABLE_ALL", threads=0):
    """A session on the CPU; ONNX Runtime chooses the number of threads where it is 0."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, "ORT_" + level)
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
