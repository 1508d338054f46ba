#!/bin/sh
# zig as a C compiler for macOS. Build scripts name the target and its least version as Apple's compiler takes them, which zig does not.
for word do
    shift
    case $word in
    --target=* | -mmacosx-version-min=*) ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec "$MLPACK_ZIG" cc -target aarch64-macos.11.0 "$@"
