#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "launcher/commands.h"
#include "launcher/directories.h"
#include "launcher/failure.h"
#include "launcher/options.h"
#include "launcher/output.h"
#include "launcher/sweep.h"
#include "launcher/timings.h"

namespace {

struct Execute {
    qvm::Timings& timings;

    int operator()(const qvm::RunOptions& o) const { return qvm::run(o, timings); }
    int operator()(const qvm::CreateOptions& o) const { return qvm::create(o); }
    int operator()(const qvm::StartOptions& o) const { return qvm::start(o, timings); }
    int operator()(const qvm::RemoveOptions& o) const { return qvm::remove(o); }
    int operator()(const qvm::VerbOptions& o) const { return qvm::verb(o); }
    int operator()(const qvm::PsOptions& o) const { return qvm::ps(o); }
    int operator()(const qvm::InspectOptions& o) const { return qvm::inspect(o); }
    int operator()(const qvm::LogsOptions& o) const { return qvm::logs(o); }
    int operator()(const qvm::ConsoleOptions& o) const { return qvm::console(o); }
    int operator()(const qvm::ExecOptions& o) const { return qvm::exec(o); }
    int operator()(const qvm::SshOptions& o) const { return qvm::ssh(o); }
    int operator()(const qvm::SshConfigOptions& o) const { return qvm::ssh_config(o); }
    int operator()(const qvm::CopyOptions& o) const { return qvm::copy(o); }
    int operator()(const qvm::EventsOptions& o) const { return qvm::events(o); }
    int operator()(const qvm::QmpOptions& o) const { return qvm::qmp_command(o); }
    int operator()(const qvm::NetLsOptions& o) const { return qvm::net_ls(o); }
    int operator()(const qvm::NetInspectOptions& o) const { return qvm::net_inspect(o); }
    int operator()(const qvm::NetExecOptions& o) const { return qvm::net_exec(o); }
    int operator()(const qvm::ForkOptions& o) const { return qvm::fork(o); }
    int operator()(const qvm::SnapshotCreateOptions& o) const { return qvm::snapshot_create(o); }
    int operator()(const qvm::SnapshotLsOptions& o) const { return qvm::snapshot_ls(o); }
    int operator()(const qvm::SnapshotInspectOptions& o) const { return qvm::snapshot_inspect(o); }
    int operator()(const qvm::SnapshotExportOptions& o) const { return qvm::snapshot_export(o); }
    int operator()(const qvm::SnapshotImportOptions& o) const { return qvm::snapshot_import(o); }
    int operator()(const qvm::SnapshotRmOptions& o) const { return qvm::snapshot_rm(o); }
    int operator()(const qvm::GcOptions& o) const { return qvm::gc(o); }
    int operator()(const qvm::DoctorOptions& o) const { return qvm::doctor(o); }
    int operator()(const qvm::ImageDemoOptions& o) const { return qvm::image_demo(o); }
    int operator()(const qvm::ImagePullOptions& o) const { return qvm::image_pull(o); }
    int operator()(const qvm::ImageImportOptions& o) const { return qvm::image_import(o); }
    int operator()(const qvm::ImageLsOptions& o) const { return qvm::image_ls(o); }
    int operator()(const qvm::ImageInspectOptions& o) const { return qvm::image_inspect(o); }
    int operator()(const qvm::ImageTagOptions& o) const { return qvm::image_tag(o); }
    int operator()(const qvm::ImageExportOptions& o) const { return qvm::image_export(o); }
    int operator()(const qvm::ImageRmOptions& o) const { return qvm::image_rm(o); }
    int operator()(const qvm::ImagePruneOptions& o) const { return qvm::image_prune(o); }
    int operator()(const qvm::ImageVerifyOptions& o) const { return qvm::image_verify(o); }
    int operator()(const qvm::ImageBuildDebianOptions& o) const {
        return qvm::image_build_debian(o);
    }
    int operator()(const qvm::CompletionOptions& o) const { return qvm::completion(o); }
    int operator()(const qvm::PrintText& print) const {
        qvm::print(print.text);
        return qvm::status::ok;
    }
};

/// A descriptor of ours must not become the stdin, stdout or stderr that our caller closed.
void open_missing_stdio() {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd)
        if (::fcntl(fd, F_GETFD) < 0) ::open("/dev/null", O_RDWR);  // takes the lowest: this one
}

/// Every command clears away what dead supervisors left; none fails for want of that.
void sweep_first() noexcept {
    try {
        qvm::sweep(qvm::find_directories());
    } catch (const std::exception&) {
        // It stays for the next.
    }
}

}  // namespace

int main(int argc, char** argv) {
    open_missing_stdio();
    qvm::Timings timings{qvm::time_of_exec()};
    ::signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error of the write
    try {
        const auto command = qvm::parse_command_line(argc, argv);
        // gc does it itself; a script is also printed by who builds qvm.
        if (!std::holds_alternative<qvm::GcOptions>(command) &&
            !std::holds_alternative<qvm::CompletionOptions>(command))
            sweep_first();
        return std::visit(Execute{timings}, command);
    } catch (const std::exception&) {
        return qvm::say_failure();
    }
}
