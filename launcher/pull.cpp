#include "launcher/pull.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <system_error>
#include <thread>
#include <utility>

#include "images/checksum_file.h"
#include "images/error.h"
#include "images/signature.h"
#include "images/sparse.h"
#include "images/url.h"
#include "launcher/failure.h"
#include "launcher/http.h"
#include "launcher/image_draft.h"
#include "launcher/memory_file.h"
#include "launcher/output.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "launcher/qemu_img.h"

namespace qvm {

using images::Answer;
using images::Checksum;
using images::HashKind;
using images::Verdict;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t longest_list = 4 * 1024 * 1024;  // of checksums
constexpr int most_failures = 4;                       // in a row, without a byte more
constexpr auto first_pause = 1s;                       // after one; twice as long after the next

/// What the contents have to be.
struct Expected {
    std::optional<Checksum> checksum{};
    std::string source{};     ///< who says so
    std::string signature{};  ///< what is known of that
};

using Note = std::function<void(const std::string&)>;

/// Attempts at one file: whether, and when, there is to be another.
class Attempts {
  public:
    Attempts(const std::string& url, Note note)
        : url_(images::without_secrets(url)), note_(std::move(note)) {}

    /// After one that failed, with so many bytes by now: waits, where another may help; each time
    /// longer, unless it brought more. Throws Failure where none would.
    void failed(const HttpEnd& end, std::uint64_t done) {
        const bool broken = !end.problem.empty();
        const auto problem = broken ? end.problem : images::describe_status(end.answer.status);
        const bool passing = broken ? is_passing_problem(end.code, answered_)
                                    : images::is_passing(end.answer.status);
        answered_ = answered_ || end.answer.status != 0;
        failures_ = done > most_ ? 1 : failures_ + 1;
        most_ = std::max(most_, done);
        if (!passing || failures_ == most_failures)
            throw Failure(fmt::format("{}: {}", url_, problem));
        const auto pause = first_pause * (1 << (failures_ - 1));
        note_(fmt::format("{}: again in {} s", problem, pause / 1s));
        std::this_thread::sleep_for(pause);
    }

  private:
    std::string url_;
    Note note_;
    bool answered_ = false;
    int failures_ = 0;        // in a row, without a byte more
    std::uint64_t most_ = 0;  // bytes
};

class Pull {
  public:
    Pull(const ImageStore& store, const PullRequest& request)
        : store_(store),
          request_(request),
          entry_(request.entry),
          url_(images::without_secrets(entry_.url)) {}

    ImageRecord operator()() {
        note("from " + url_);
        const auto expected = expect();
        if (auto record = find(expected)) return *record;
        (void)find_qemu_img();  // without which nothing could be made of what came
        // Whoever changes it on the way cannot change the checksum, too.
        downgrade_ = request_.checksum ||
                     (expected.checksum && images::has_scheme(entry_.checksums, "https"));
        bool waited = false;
        Download download{store_.downloads(), entry_.url, [&] {
                              waited = true;
                              note("another qvm pulls it: waiting for it");
                          }};
        if (waited)
            if (auto record = find(expected)) return *record;
        return add(download, expected);
    }

  private:
    void note(const std::string& text) const {
        if (!request_.quiet) say(fmt::format("qvm: {}: {}", entry_.name, text));
    }

    [[nodiscard]] Note noter() const {
        return [this](const std::string& text) { note(text); };
    }

    [[nodiscard]] ProgressMeter::On shown_on_terminal() const {
        return request_.quiet ? ProgressMeter::On::nothing : ProgressMeter::On::terminal;
    }

    // --- what it has to be ----------------------------------------------------------------------

    [[nodiscard]] Expected expect() const {
        if (request_.checksum) return {request_.checksum, "--checksum"};
        if (entry_.checksums.empty()) {
            note("there is no checksum to compare it with");
            return {};
        }
        auto list = get_text(entry_.checksums);
        Expected expected{.source = images::without_secrets(entry_.checksums)};
        expected.signature = check_signature(list);
        const auto file = images::file_name_of(entry_.url);
        try {
            expected.checksum = images::find_checksum(list, file);
            // "disk.qcow2.sha256" may know it by the name of its version.
            if (!expected.checksum && images::file_name_of(entry_.checksums).starts_with(file))
                expected.checksum = images::only_checksum(list);
        } catch (const images::Error& error) {
            throw Failure(fmt::format("{}: {}", expected.source, error.what()));
        }
        if (!expected.checksum)
            throw Failure(fmt::format("{}: has no checksum of '{}'", expected.source, file));
        return expected;
    }

    /// A file of a few KiB.
    [[nodiscard]] std::string get_text(const std::string& url) const {
        std::string text;
        const auto is_text = [](const Answer& answer) {
            return images::judge({}, answer).kind == Verdict::Kind::begin;
        };
        const auto take = [&](std::string_view bytes) {
            text += bytes;
            if (text.size() > longest_list)
                throw Failure(fmt::format("{}: is longer than {} MiB", images::without_secrets(url),
                                          longest_list / 1024 / 1024));
        };
        for (Attempts attempts{url, noter()};; text.clear()) {
            const auto end = http_get({.url = url}, {.begin = is_text, .take = take});
            if (end.problem.empty() && is_text(end.answer)) return text;
            attempts.failed(end, text.size());
        }
    }

    /// What is known of the list's signature. Of a list that is signed itself that part remains
    /// that was.
    [[nodiscard]] std::string check_signature(std::string& list) const {
        if (entry_.keyring.empty()) return "none";
        const auto not_checked = [&](const std::string& why) {
            note("the signature of its checksum was not checked: " + why);
            return "not checked: " + why;
        };
        if (!find_program("gpgv")) return not_checked("gpgv is not installed");
        if (!std::filesystem::exists(entry_.keyring))
            return not_checked(fmt::format(
                "there is no '{}'{}", entry_.keyring,
                entry_.keyring_package.empty() ? "" : ", of " + entry_.keyring_package));
        constexpr int status_number = 3;  // gpgv's
        const MemoryFile status;
        Tool gpgv{.argv = {"gpgv", "--status-fd", std::to_string(status_number), "--keyring",
                           entry_.keyring, "--output", "-"},
                  .inherit = {{status.fd(), status_number}}};
        const ImageDraft signature{store_.drafts()};
        const bool apart = !entry_.signature.empty();
        signature.write(apart ? get_text(entry_.signature) : list);
        gpgv.argv.push_back(signature.path().string());
        if (apart) gpgv.argv.emplace_back("-");
        if (apart) gpgv.input = list;
        const auto checked = run_tool(gpgv);
        // Its exit status is 0 for keys that have expired or were revoked, too.
        auto problem = images::problem_of_signature(status.text());
        if (problem.empty() && (checked.status.code != 0 || checked.status.signal != 0))
            problem = last_line(checked.err);
        if (!problem.empty())
            throw Failure(fmt::format(
                "{}: its signature is not good: {}",
                images::without_secrets(apart ? entry_.signature : entry_.checksums), problem));
        if (!apart) list = checked.out;
        return "good";
    }

    /// What gpgv says where it fails otherwise.
    static std::string last_line(std::string text) {
        while (text.ends_with('\n')) text.pop_back();
        text.erase(0, text.rfind('\n') + 1);
        constexpr std::string_view prefix = "gpgv: ";
        if (text.starts_with(prefix)) text.erase(0, prefix.size());
        return text;
    }

    /// The image, where it is there already; it has the name then. Without a checksum nobody knows.
    [[nodiscard]] std::optional<ImageRecord> find(const Expected& expected) const {
        if (!expected.checksum) return std::nullopt;
        auto record = store_.find_checked(to_string(*expected.checksum));
        if (!record || !store_.is_whole(record->digest)) return std::nullopt;
        describe(*record, expected);
        if (!store_.give_name(entry_.name, *record)) return std::nullopt;
        note("is here already");
        return record;
    }

    void describe(ImageRecord& record, const Expected& expected) const {
        record.architecture = entry_.architecture;
        record.source = url_;
        if (expected.checksum) record.checksum = to_string(*expected.checksum);
        record.checksum_source = expected.source;
        record.signature = expected.signature;
    }

    // --- the transfer ---------------------------------------------------------------------------

    ImageRecord add(Download& download, const Expected& expected) {
        const bool goes_on = images::can_go_on(download.partial());
        auto digest = transfer(download, expected);
        // What was there may have been of no use: written by half when the power went, say.
        if (!digest && goes_on) {
            note("what was there of it was no good: once more from the beginning");
            digest = transfer(download, expected);
        }
        if (!digest) {
            download.discard();
            throw Failure(
                fmt::format("{}: its checksum is not what {} says", url_, expected.source),
                request_.checksum ? "" : "it may be changing just now: try again later");
        }
        ProgressMeter meter{entry_.name, shown_on_terminal()};
        auto [draft, record] = image_of_download(store_, download, *digest, meter);
        describe(record, expected);
        store_.add(std::move(draft), entry_.name, record);
        return record;
    }

    /// Its SHA-256, once all is there; nothing where it is not what was expected, and then it is
    /// empty.
    std::optional<std::string> transfer(Download& download, const Expected& expected) {
        Hashes hashes{expected.checksum};
        if (images::can_go_on(download.partial()))
            hashes.read(download, "reading " + entry_.name, shown_on_terminal());
        ProgressMeter meter{
            entry_.name, request_.quiet ? ProgressMeter::On::nothing : ProgressMeter::On::anything};
        for (Attempts attempts{entry_.url, noter()};;) {
            const auto [end, verdict] = get_more(download, hashes, meter);
            meter.clear();
            const bool taken = end.problem.empty() && verdict != Verdict::Kind::refused;
            if (taken && verdict != Verdict::Kind::restart) break;
            if (taken && download.partial().size > 0)
                download.begin({});
            else
                attempts.failed(end, download.partial().size);
        }
        auto digest = hashes.finish();
        if (!digest) download.begin({});
        return digest;
    }

    /// SHA-256, and what else the checksum is made by.
    class Hashes {
      public:
        explicit Hashes(const std::optional<Checksum>& expected) : expected_(expected) { begin(); }

        void begin() {
            own_ = images::Hash{HashKind::sha256};
            other_.reset();
            if (expected_ && expected_->kind != HashKind::sha256) other_.emplace(expected_->kind);
        }
        /// What is there of it.
        void read(const Download& download, const std::string& what, ProgressMeter::On on) {
            ProgressMeter meter{what, on};
            const auto tell = [&](std::uint64_t done) { meter.update(done); };
            try {
                meter.begin(0, download.partial().size);
                images::hash_file(download.fd(), own_, tell);
                if (!other_) return;
                meter.begin(0, download.partial().size);
                images::hash_file(download.fd(), *other_, tell);
            } catch (const std::system_error& error) {
                throw Failure(
                    fmt::format("read '{}': {}", download.path().string(), error.code().message()));
            }
        }
        void update(std::string_view bytes) {
            own_.update(bytes.data(), bytes.size());
            if (other_) other_->update(bytes.data(), bytes.size());
        }
        std::optional<std::string> finish() {
            const auto own = own_.finish();
            if (!expected_ || *expected_ == (other_ ? other_->finish() : own)) return own.hex;
            return std::nullopt;
        }

      private:
        std::optional<Checksum> expected_;
        images::Hash own_{HashKind::sha256};
        std::optional<images::Hash> other_;
    };

    /// One request: how it ended, and what became of the answer.
    std::pair<HttpEnd, Verdict::Kind> get_more(Download& download, Hashes& hashes,
                                               ProgressMeter& meter) {
        Verdict verdict;
        const auto begin = [&](const Answer& answer) {
            verdict = judge(download.partial(), answer);
            if (verdict.kind == Verdict::Kind::begin) {
                download.begin(validator_of(answer));
                hashes.begin();
            } else if (verdict.kind != Verdict::Kind::append) {
                return false;
            }
            const auto done = download.partial().size;
            if (verdict.size && *verdict.size > done)
                check_space(store_.downloads(), *verdict.size - done, more_room);
            meter.begin(done, verdict.size);
            return true;
        };
        const auto take = [&](std::string_view bytes) {
            download.append(bytes);
            hashes.update(bytes);
            meter.update(download.partial().size);
        };
        auto end =
            http_get({.url = entry_.url, .partial = download.partial(), .downgrade = downgrade_},
                     {.begin = begin, .take = take});
        return {std::move(end), verdict.kind};
    }

    const ImageStore& store_;
    const PullRequest& request_;
    const images::CatalogueEntry& entry_;
    std::string url_;         ///< as it is shown and kept
    bool downgrade_ = false;  ///< an https URL may lead to one of http
};

}  // namespace

ImageRecord pull(const ImageStore& store, const PullRequest& request) {
    return naming(fmt::format("pull '{}'", request.entry.name), [&] {
        return Pull{store, request}();
    });
}

}  // namespace qvm
