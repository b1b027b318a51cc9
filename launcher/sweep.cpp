#include "launcher/sweep.h"

#include <fmt/format.h>
#include <signal.h>

#include "launcher/definition.h"
#include "launcher/events.h"
#include "launcher/failure.h"
#include "launcher/group.h"
#include "launcher/image_store.h"
#include "launcher/output.h"
#include "launcher/snapshot.h"
#include "launcher/warm.h"
#include "netns/error.h"
#include "netns/forwarding.h"

namespace qvm {

namespace fs = std::filesystem;

namespace {

void sweep_groups(const Directories& directories, Swept& swept) {
    for (const auto& directory : directories_in(directories.groups()))
        if (sweep_group(directory))
            swept.others.push_back(fmt::format("group '{}'", directory.filename().string()));
}

void sweep_forwarding(const Directories& directories, Swept& swept) {
    try {
        for (const auto& interface : netns::sweep_forwarding(directories.forwarding()))
            swept.others.push_back(fmt::format("IPv4 forwarding of '{}'", interface));
    } catch (const netns::Error&) {
        // For the next.
    }
}

}  // namespace

Swept sweep(const Directories& directories) {
    Swept swept;
    const DefinitionStore store{directories};
    // A VM that was created keeps how it ended, also where nobody was left to say so. One that has
    // an end has not begun another life, or was on its way out of this one.
    swept.vms = sweep_vms(directories.run, [&](const auto& name, const auto& directory) {
        if (store.exists(name) && !store.last_end(name) && fs::exists(directory / "state.json"))
            store.keep_end(name,
                           {status::signalled + SIGKILL, "its supervisor was killed", timestamp()},
                           directory);
    });
    for (const auto& name : swept.vms) announce(directories, "died", name);
    sweep_listeners(directories);
    sweep_groups(directories, swept);
    sweep_forwarding(directories, swept);
    if (const auto count = store.sweep(); count > 0)
        swept.others.push_back(fmt::format("{} half made definitions", count));
    if (const auto count = SnapshotStore{directories.snapshots()}.sweep(); count > 0)
        swept.others.push_back(
            fmt::format("{} snapshots that were not finished, or are of no use", count));
    if (const auto count = sweep_warm(directories); count > 0)
        swept.others.push_back(fmt::format("{} machines that --warm was about to save", count));
    if (const auto count = ImageStore{directories.images()}.sweep(); count > 0)
        swept.others.push_back(fmt::format("{} images that were not finished", count));
    return swept;
}

int gc(const GcOptions&) {
    const auto swept = sweep(find_directories());
    for (const auto& name : swept.vms) print(fmt::format("VM '{}'\n", name));
    for (const auto& other : swept.others) print(other + "\n");
    return status::ok;
}

}  // namespace qvm
