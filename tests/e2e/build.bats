#!/usr/bin/env bats
# docker build, with the classic builder and with BuildKit.

load helpers

setup_file() {
    new_site
    start_ceph_plugin
    start_ceph_dockerd
    docker load --input "$E2E/small.tar"
    make_context classic
    make_context buildkit
}

# make_context BUILDER: a build in three stages: from nothing, with all kinds of steps, with copies from the others.
# A layer that both builders make is kept for ever by BuildKit of 20.10, on overlay2 too: their roots differ.
make_context() {
    local context=$SITE/$1
    mkdir -p "$context/tree/sub"
    echo from-context >"$context/tree/sub/file"
    cp "$E2E/busybox.tar" "$context/root.tar"
    tar --append --file "$context/root.tar" --directory "$context/tree" --transform "s/sub/$1/" sub
    cat >"$context/Dockerfile" <<'END'
FROM scratch AS root
ADD root.tar /
RUN echo made-in-root >/made && chmod 0640 /made && chown 7:8 /made

FROM small AS work
WORKDIR /work
COPY tree /work/tree
RUN echo made-in-work >made && rm /last && ln made hard

FROM root
COPY --from=work /work /copied
COPY --from=small /layers /layers
RUN test "$(cat /copied/hard)" = made-in-work && echo done >/done
CMD ["cat", "/made", "/copied/tree/sub/file", "/copied/made", "/layers/2", "/done"]
END
}

classic() { DOCKER_BUILDKIT=0 docker build --network none "$@"; }

buildkit() { DOCKER_BUILDKIT=1 docker build --network none --progress plain "$@"; }

# What was built can be run, is the same in a second look, and the layers of the steps are there.
check_built() {
    run -0 docker run --rm "$1"
    [[ ${lines[*]} == "made-in-root from-context made-in-work 2 done" ]]
    run -0 docker run --rm "$1" stat -c '%u %g %a' /made
    [[ $output == "7 8 640" ]]
    docker save --output "$SITE/built.tar" "$1"
    docker rmi --force "$1"
    docker load --input "$SITE/built.tar"
    run -0 docker run --rm "$1"
    [[ ${lines[*]} == "made-in-root from-context made-in-work 2 done" ]]
}

@test "classic builder: stages, COPY --from, RUN, and the cache" {
    classic --tag classic "$SITE/classic"
    run -0 classic --tag classic-again "$SITE/classic"
    [[ $(grep --count 'Using cache' <<<"$output") == 9 ]]
    docker rmi classic-again
    nothing_is_mapped
    check_built classic
}

@test "classic builder: a step that fails leaves nothing mapped" {
    printf 'FROM small\nRUN echo x >/x\nRUN exit 7\n' >"$SITE/failing"
    run -7 classic --force-rm - <"$SITE/failing"
    [[ $output == *"returned a non-zero code: 7"* ]]
    nothing_is_mapped
}

# bats test_tags=debian13
@test "BuildKit: stages, COPY --from, RUN, and the cache" {
    buildkit --tag buildkit "$SITE/buildkit"
    eventually nothing_is_mapped
    run -0 buildkit --tag buildkit-again "$SITE/buildkit"
    [[ $(grep --count 'CACHED$' <<<"$output") -ge 7 ]]
    docker rmi buildkit-again
    check_built buildkit
}

# refused_since LINES: what the driver refused, and what it could not do, since its log had so many lines.
refused_since() { tail -n "+$(($1 + 1))" "$SITE/plugin.log" | grep --extended-regexp ' (WARNING|ERROR) '; }

# bats test_tags=debian13
@test "BuildKit: RUN --mount, and a step that fails leaves nothing mapped" {
    local lines_before
    lines_before=$(wc -l <"$SITE/plugin.log")
    cat >"$SITE/failing" <<'END'
FROM small
RUN --mount=type=bind,from=small,target=/other test -f /other/last
RUN --mount=type=cache,target=/cache touch /cache/x && exit 7
END
    run -1 buildkit - <"$SITE/failing"
    [[ $output == *"exit code: 7"* ]]
    nothing_is_mapped
    # The driver was asked, and had nothing to do with the failure.
    (($(wc -l <"$SITE/plugin.log") > lines_before))
    run -1 refused_since "$lines_before"
    # What the step had written to the cache is there for the next one.
    sed --in-place 's/touch \/cache\/x && exit 7/test -e \/cache\/x/' "$SITE/failing"
    buildkit - <"$SITE/failing"
}

# bats test_tags=debian13
@test "BuildKit: a build cache that is pruned is gone from the pool" {
    local before
    before=$(rbd ls rbd)
    printf 'FROM small\nRUN echo pruned >/x\n' | buildkit -
    [[ -n $(new_in_pool "$before") ]]
    docker builder prune --all --force
    docker image prune --force
    eventually pool_holds_no_more "$before"
}

# bats test_tags=debian13
@test "nothing is left" {
    nothing_is_left
}
