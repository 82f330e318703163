# A Rails application on PostgreSQL, where the variables of libpq say.
require "rails"
require "active_record/railtie"
require "action_controller/railtie"

class Application < Rails::Application
  config.root = __dir__
  config.eager_load = true
  config.consider_all_requests_local = false
  config.secret_key_base = "only for tests"
  config.logger = Logger.new($stdout)
  config.hosts.clear
  routes.append { root to: "visits#show" }
end

class Visit < ActiveRecord::Base
end

class VisitsController < ActionController::Base
  def show
    render plain: "#{Visit.count} visits\n"
  end
end

ENV["DATABASE_URL"] = "postgresql:///postgres"
Rails.application.initialize!
# Given back to the pool, which looks whether it is alive whenever it lends it.
ActiveRecord::Base.connection_pool.with_connection { Visit.count }
run Rails.application
